#include "models/base/dtype.h"

#include "models/base/check.h"

namespace trainyard {

std::int64_t size_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::Bf16: return 2;
    case Dtype::F32: return 4;
    case Dtype::F64: return 8;
    case Dtype::I32: return 4;
  }
  TY_CHECK(false, "unknown dtype");
}

const char* to_string(Dtype dtype) {
  switch (dtype) {
    case Dtype::Bf16: return "bf16";
    case Dtype::F32: return "f32";
    case Dtype::F64: return "f64";
    case Dtype::I32: return "i32";
  }
  TY_CHECK(false, "unknown dtype");
}

}  // namespace trainyard
