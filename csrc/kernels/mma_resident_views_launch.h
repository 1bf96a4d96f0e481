// Between mma_resident_views.cu and the files that instantiate its kernel, one per dtype so that they compile
// side by side.
#pragma once

#include "mma_resident_launch.h"

namespace acsconv {

struct ResidentViewsLaunch : ResidentLaunch {
  const float* bias;
};
using ResidentViewsLauncher = const char* (*)(const ResidentViewsLaunch&);

// The kernel of a shape of kResidentViewsShapes; float is TF32.
template <class T>
ResidentViewsLauncher resident_views_instance(int shape);

}  // namespace acsconv
