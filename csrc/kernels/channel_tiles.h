// Cuts the output channels of a problem into tiles for thread blocks. A tile holds up to `width` consecutive
// output channels of one view and one group, so that a block has one geometry and one range of input
// channels. Tiles are numbered view by view, group by group. Host and device: the launcher counts the tiles,
// the kernel looks one up.
#pragma once

#include "../problem.h"

namespace acsconv {

struct ChannelTile {
  int view;
  int64_t group;
  int64_t begin, end;  // output channels; empty where a view holds only part of a group
};

ACSCONV_HD inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Tiles that `width` channels cut each group into, within one view.
ACSCONV_HD inline int64_t channel_tiles_per_group(const Problem& p, int view, int64_t width) {
  const int64_t per_group = p.out_channels / p.groups;
  return ceil_div(p.split[view] < per_group ? p.split[view] : per_group, width);
}

ACSCONV_HD inline int64_t channel_tiles_of_view(const Problem& p, int view, int64_t width) {
  if (p.split[view] == 0) return 0;
  const int64_t per_group = p.out_channels / p.groups;
  const int64_t begin = view_channels_begin(p.split, view);
  const int64_t groups = (begin + p.split[view] - 1) / per_group - begin / per_group + 1;
  return groups * channel_tiles_per_group(p, view, width);
}

ACSCONV_HD inline int64_t channel_tile_count(const Problem& p, int64_t width) {
  return channel_tiles_of_view(p, 0, width) + channel_tiles_of_view(p, 1, width) +
         channel_tiles_of_view(p, 2, width);
}

ACSCONV_HD inline ChannelTile channel_tile(const Problem& p, int64_t index, int64_t width) {
  int view = 0;
  int64_t view_begin = 0;
  for (; view < kViews - 1; ++view) {
    const int64_t tiles = channel_tiles_of_view(p, view, width);
    if (index < tiles) break;
    index -= tiles;
    view_begin += p.split[view];
  }
  const int64_t per_group = p.out_channels / p.groups;
  const int64_t tiles = channel_tiles_per_group(p, view, width);
  const int64_t view_end = view_begin + p.split[view];
  ChannelTile tile;
  tile.view = view;
  tile.group = view_begin / per_group + index / tiles;
  const int64_t group_begin = tile.group * per_group, group_end = group_begin + per_group;
  tile.begin = (group_begin > view_begin ? group_begin : view_begin) + index % tiles * width;
  const int64_t limit = group_end < view_end ? group_end : view_end;
  tile.end = tile.begin + width < limit ? tile.begin + width : limit;
  return tile;
}

// The same for depthwise layers, where channels of one view stand together whatever their group.
struct ViewChannels {
  int view;
  int64_t begin, end;
};

ACSCONV_HD inline int64_t depthwise_channel_tiles(const Problem& p, int64_t width) {
  return ceil_div(p.split[0], width) + ceil_div(p.split[1], width) + ceil_div(p.split[2], width);
}

ACSCONV_HD inline ViewChannels depthwise_channels(const Problem& p, int64_t index, int64_t width) {
  int view = 0;
  for (; view < kViews - 1; ++view) {
    const int64_t tiles = ceil_div(p.split[view], width);
    if (index < tiles) break;
    index -= tiles;
  }
  const int64_t begin = view_channels_begin(p.split, view) + index * width;
  const int64_t limit = view_channels_begin(p.split, view) + p.split[view];
  return {view, begin, begin + width < limit ? begin + width : limit};
}

}  // namespace acsconv
