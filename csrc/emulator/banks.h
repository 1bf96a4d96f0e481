// Counts the wavefronts of shared-memory instructions from the addresses that the lanes really use, with the
// setting count_banks: of ldmatrix and cp.async, and apart from these of the plain loads and stores in every
// source file, as g++ compiled them: nvcc may join or split the accesses to a struct's members. Shared memory
// serves 128 bytes per wavefront, from 32 banks of 4 bytes. Lanes go in groups that ask for 128 bytes
// together (8 lanes of 16 bytes, 16 of 8, all of 4); a group takes as many wavefronts as different words of
// one bank it touches.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace emulator {

struct BankUse {
  uint64_t instructions = 0;
  uint64_t wavefronts = 0, least = 0;  // taken; and if every group took one
};
using BankReport = std::map<std::string, BankUse>;  // by instruction

// One instruction of a warp: `addresses` of the lanes in `mask`, each of `bytes`.
void count_banks(const std::string& instruction, const uint32_t* addresses, uint32_t mask, uint32_t bytes);

// A lane's part of an instruction that lanes execute one by one. What they do for the n-th time since a
// barrier is one execution; finish_lanes() counts them, at barriers and at the end of the block.
// `plain`: a load or store, to which the report adds its source file.
void count_lane(const char* instruction, uint32_t address, uint32_t bytes, const void* program_counter,
                bool plain = false);
void finish_lanes();

BankReport take_bank_report(bool plain);  // since the last call

}  // namespace emulator
