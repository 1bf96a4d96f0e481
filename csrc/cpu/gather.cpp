// Turns a Problem into the gather of one of its passes.
#include "gather.h"

#include <algorithm>
#include <tuple>

#include "integers.h"

namespace acsconv {
namespace {

// Whether any target reads inside the source through this displacement.
bool reads_inside(int64_t displacement, int64_t stride, int64_t in_size, int64_t targets) {
  const int64_t first = ceil_div(std::max<int64_t>(0, -displacement), stride);
  return first < targets && first * stride + displacement < in_size;
}

// The taps of all views. `mirrored` is the gradient of the input.
void find_taps(const Problem& p, bool soft, bool mirrored, Gather& gather) {
  const int64_t kernel = p.kernel_h * p.kernel_w;
  for (int view = 0; view < kViews; ++view) {
    if (!soft && p.split[view] == 0) continue;
    for (int64_t i = 0; i < kernel; ++i) {
      GatherTap tap{};
      tap.set = soft ? 0 : view;
      tap.weight_count = 1;
      tap.weights[0] = (soft ? view * p.out_channels * (p.in_channels / p.groups) * kernel : 0) + i;
      bool inside = true;
      for (int axis = 0; axis < 3; ++axis) {
        const int64_t step = axis == row_axis(view)      ? i / p.kernel_w
                             : axis == column_axis(view) ? i % p.kernel_w
                                                         : 0;
        const int64_t displacement = p.origin[view][axis] + step * p.dilation[view][axis];
        const int64_t whole = floor_div(displacement, p.stride[axis]);
        tap.displacement[axis] = mirrored ? -whole : displacement;
        tap.residue[axis] = mirrored ? displacement - whole * p.stride[axis] : 0;
        const int64_t targets = ceil_div(gather.out_size[axis] - tap.residue[axis], gather.out_stride[axis]);
        inside &= reads_inside(tap.displacement[axis], gather.in_stride[axis], gather.in_size[axis], targets);
      }
      if (!inside) continue;
      const auto same = std::find_if(gather.taps.begin(), gather.taps.end(), [&](const GatherTap& other) {
        return other.set == tap.set && other.displacement == tap.displacement && other.residue == tap.residue;
      });
      if (same == gather.taps.end()) {
        gather.taps.push_back(tap);
      } else {
        same->weights[same->weight_count++] = tap.weights[0];
      }
    }
  }
  std::stable_sort(gather.taps.begin(), gather.taps.end(), [](const GatherTap& a, const GatherTap& b) {
    return std::tie(a.residue, a.set) < std::tie(b.residue, b.set);
  });
}

// Output channels [begin, end) of one view, or of all where Soft ACS computes each channel in every view.
struct ViewChannels {
  int set;
  int64_t begin, end;
};

std::vector<ViewChannels> channels_of_group(const Problem& p, bool soft, int64_t group) {
  const int64_t per_group = p.out_channels / p.groups;
  const int64_t begin = group * per_group, end = begin + per_group;
  if (soft) return {{0, begin, end}};
  std::vector<ViewChannels> result;
  int64_t first = 0;
  for (int view = 0; view < kViews; first += p.split[view++]) {
    const int64_t low = std::max(begin, first), high = std::min(end, first + p.split[view]);
    if (low < high) result.push_back({view, low, high});
  }
  return result;
}

}  // namespace

int64_t Gather::classes(int axis) const { return std::min(out_stride[axis], out_size[axis]); }
int64_t Gather::class_size(int axis) const { return ceil_div(out_size[axis], out_stride[axis]); }

int64_t tensor_numbers(const VolumeStrides& strides, int64_t batch, int64_t channels,
                       const std::array<int64_t, 3>& size) {
  int64_t last = (batch - 1) * strides.batch + (channels - 1) * strides.channel;
  for (int axis = 0; axis < 3; ++axis) last += (size[axis] - 1) * strides.axis[axis];
  return last + 1;
}

int64_t weight_numbers(const Problem& p, bool soft) {
  return (soft ? kViews : 1) * p.out_channels * (p.in_channels / p.groups) * p.kernel_h * p.kernel_w;
}

Gather forward_gather(const Problem& p, bool soft) {
  const int64_t kernel = p.kernel_h * p.kernel_w, per_group = p.in_channels / p.groups;
  Gather gather{};
  gather.batch = p.batch, gather.in_channels = p.in_channels, gather.groups = p.groups;
  for (int axis = 0; axis < 3; ++axis) {
    gather.in_size[axis] = p.in_size[axis], gather.in_stride[axis] = p.stride[axis];
    gather.out_size[axis] = p.out_size[axis], gather.out_stride[axis] = 1;
  }
  gather.source = p.input, gather.target = p.output;
  gather.weight_in = kernel, gather.weight_out = per_group * kernel;
  find_taps(p, soft, false, gather);
  for (int64_t group = 0; group < p.groups; ++group) {
    for (const ViewChannels& view : channels_of_group(p, soft, group)) {
      const GatherPart part{view.set, group * per_group, per_group, view.begin * gather.weight_out};
      gather.ranges.push_back({group, view.begin, view.end, {part}});
    }
  }
  return gather;
}

Gather backward_input_gather(const Problem& p, bool soft) {
  const int64_t kernel = p.kernel_h * p.kernel_w, per_group = p.in_channels / p.groups;
  Gather gather{};
  gather.batch = p.batch, gather.in_channels = p.out_channels, gather.groups = p.groups;
  for (int axis = 0; axis < 3; ++axis) {
    gather.in_size[axis] = p.out_size[axis], gather.in_stride[axis] = 1;
    gather.out_size[axis] = p.in_size[axis], gather.out_stride[axis] = p.stride[axis];
  }
  gather.source = p.output, gather.target = p.input;
  gather.weight_in = per_group * kernel, gather.weight_out = kernel;
  find_taps(p, soft, true, gather);
  for (int64_t group = 0; group < p.groups; ++group) {
    GatherRange range{group, group * per_group, (group + 1) * per_group, {}};
    for (const ViewChannels& view : channels_of_group(p, soft, group)) {
      range.parts.push_back({view.set, view.begin, view.end - view.begin, view.begin * gather.weight_in});
    }
    gather.ranges.push_back(std::move(range));
  }
  return gather;
}

}  // namespace acsconv
