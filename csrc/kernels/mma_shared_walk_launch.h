// Between mma_shared_walk.cu and the files that instantiate its kernel, one per dtype so that they compile
// side by side.
#pragma once

#include "../mma_shared_walk_plan.h"
#include "mma_work.cuh"

namespace acsconv {

// What a column of the products holds.
struct ResultColumn {
  int channel;  // -1: nothing
  float bias;
};

struct SharedWalkLaunch {
  MmaWork work;
  unsigned blocks;
  size_t shared_bytes;
  const void* source;
  const unsigned char* packed;
  const ResultColumn* columns;
  void *result, *stream;
  bool whole_pieces;  // 8 channels of the result from a multiple of 8 on are 16 aligned bytes
};
using SharedWalkLauncher = const char* (*)(const SharedWalkLaunch&);

// The kernel of a shape of kSharedWalkShapes; float is TF32.
template <class T>
SharedWalkLauncher shared_walk_instance(int shape);

}  // namespace acsconv
