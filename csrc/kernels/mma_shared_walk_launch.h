// Between mma_shared_walk.cu and the files that instantiate its kernel, one per dtype so that they compile
// side by side.
#pragma once

#include "../mma_shared_walk_plan.h"
#include "mma_resident_launch.h"

namespace acsconv {

// What a column of the products holds.
struct ResultColumn {
  int channel;  // -1: nothing
  float bias;
};

struct SharedWalkLaunch : ResidentLaunch {
  const ResultColumn* columns;
};
using SharedWalkLauncher = const char* (*)(const SharedWalkLaunch&);

// The kernel of a shape of kSharedWalkShapes; float is TF32.
template <class T>
SharedWalkLauncher shared_walk_instance(int shape);

}  // namespace acsconv
