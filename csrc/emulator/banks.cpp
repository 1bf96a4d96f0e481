// Bank conflicts; see banks.h.
#include "banks.h"

#include <algorithm>
#include <array>
#include <set>
#include <tuple>

#include "runtime.h"

namespace emulator {
namespace {

constexpr uint32_t kBanks = 32, kWordBytes = 4, kWavefrontBytes = kBanks * kWordBytes;

BankReport warp_report, plain_report;

// What the lanes of a warp do at one instruction for the n-th time.
struct Execution {
  std::array<uint32_t, kWarpSize> addresses{};
  uint32_t mask = 0, bytes = 0;
  const char* instruction = "";
  bool plain = false;
};
std::map<std::tuple<uint32_t, const void*, uint32_t>, Execution> executions;  // by warp, instruction, n
std::map<std::pair<uint32_t, const void*>, uint32_t> times;                   // by thread, instruction

// The name of the file that an instruction comes from.
const std::string& source_file(const void* program_counter) {
  static std::map<const void*, std::string> known;
  std::string& name = known[program_counter];
  if (name.empty()) {
    const std::string line = source_line(program_counter);
    const size_t begin = line.rfind('/') + 1;
    name = line.substr(begin, line.find(':') - begin);
  }
  return name;
}

void count_banks(BankUse& use, const uint32_t* addresses, uint32_t mask, uint32_t bytes) {
  ++use.instructions;
  const uint32_t group = std::min(kWarpSize, kWavefrontBytes / bytes);
  for (uint32_t first = 0; first < kWarpSize; first += group) {
    std::array<std::set<uint32_t>, kBanks> words;
    for (uint32_t lane = first; lane < first + group; ++lane) {
      if (!(mask >> lane & 1)) continue;
      for (uint32_t byte = 0; byte < bytes; byte += kWordBytes) {
        const uint32_t word = (addresses[lane] + byte) / kWordBytes;
        words[word % kBanks].insert(word);
      }
    }
    size_t most = 0;
    for (const auto& of_bank : words) most = std::max(most, of_bank.size());
    use.wavefronts += most;
    use.least += most > 0;
  }
}

}  // namespace

void count_banks(const std::string& instruction, const uint32_t* addresses, uint32_t mask, uint32_t bytes) {
  count_banks(warp_report[instruction], addresses, mask, bytes);
}

void count_lane(const char* instruction, uint32_t address, uint32_t bytes, const void* program_counter,
                bool plain) {
  const uint32_t n = times[{fiber->index, program_counter}]++;
  Execution& execution = executions[{fiber->warp, program_counter, n}];
  execution.addresses[fiber->lane] = address;
  execution.mask |= 1u << fiber->lane;
  execution.bytes = bytes;
  execution.instruction = instruction;
  execution.plain = plain;
}

void finish_lanes() {
  for (const auto& [where, e] : executions) {
    std::string name = e.instruction + std::string(" of ") + std::to_string(e.bytes) + " bytes";
    if (e.plain) name += " in " + source_file(std::get<1>(where));
    count_banks((e.plain ? plain_report : warp_report)[name], e.addresses.data(), e.mask, e.bytes);
  }
  executions.clear();
  times.clear();
}

BankReport take_bank_report(bool plain) {
  BankReport taken;
  taken.swap(plain ? plain_report : warp_report);
  return taken;
}

}  // namespace emulator
