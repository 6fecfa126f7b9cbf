#include "tests/gpu/twin.h"

#include <catch2/catch.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "models/base/bf16.h"
#include "models/base/random.h"

namespace trainyard::gpu {

namespace {

double value_at(const std::byte* data, Dtype dtype, std::int64_t i) {
  switch (dtype) {
    case Dtype::Bf16: return static_cast<double>(bf16_to_float(reinterpret_cast<const std::uint16_t*>(data)[i]));
    case Dtype::F32: return static_cast<double>(reinterpret_cast<const float*>(data)[i]);
    case Dtype::F64: return reinterpret_cast<const double*>(data)[i];
    case Dtype::I32: return reinterpret_cast<const std::int32_t*>(data)[i];
  }
  return 0;
}

std::vector<std::byte> random_bytes(Dtype dtype, std::int64_t size, std::uint64_t seed, double deviation) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(size * size_of(dtype)));
  RandomStream random(seed, "gpu twin");
  for (std::int64_t i = 0; i < size; ++i) {
    const double value = random.normal() * deviation;
    if (dtype == Dtype::Bf16) {
      reinterpret_cast<std::uint16_t*>(bytes.data())[i] = float_to_bf16(static_cast<float>(value));
    } else if (dtype == Dtype::F32) {
      reinterpret_cast<float*>(bytes.data())[i] = static_cast<float>(value);
    } else {
      reinterpret_cast<double*>(bytes.data())[i] = value;
    }
  }
  return bytes;
}

struct Memory {
  std::byte *cpu = nullptr, *gpu = nullptr;
  ~Memory() {
    std::free(cpu);
    if (gpu != nullptr) device().release(gpu);
  }
};

}  // namespace

Pair::Pair(Dtype dtype, std::array<std::int64_t, 3> dims, const void* content)
    : cpu_{nullptr, dtype, dims}, gpu_{nullptr, dtype, dims} {
  auto memory = std::make_shared<Memory>();
  const auto size = static_cast<std::size_t>(bytes());
  memory->cpu = static_cast<std::byte*>(std::aligned_alloc(256, (size + 511) / 256 * 256));
  memory->gpu = device().allocate(bytes() + 256);
  std::memcpy(memory->cpu, content, size);
  device().copy_to_device(memory->gpu, memory->cpu, bytes(), 0);
  device().synchronize(0);
  cpu_.data = memory->cpu;
  gpu_.data = memory->gpu;
  owner_ = memory;
}

std::int64_t Pair::bytes() const { return cpu_.size() * size_of(cpu_.dtype); }

std::vector<std::byte> Pair::gpu_bytes() const {
  std::vector<std::byte> out(static_cast<std::size_t>(bytes()));
  device().copy_to_host(out.data(), static_cast<const std::byte*>(gpu_.data), bytes(), 0);
  device().synchronize(0);
  return out;
}

std::vector<double> Pair::values(Side side) const {
  const std::vector<std::byte> from_gpu = side == Side::Gpu ? gpu_bytes() : std::vector<std::byte>();
  const std::byte* data = side == Side::Gpu ? from_gpu.data() : static_cast<const std::byte*>(cpu_.data);
  std::vector<double> out;
  for (std::int64_t i = 0; i < cpu_.size(); ++i) out.push_back(value_at(data, cpu_.dtype, i));
  return out;
}

Pair random_pair(Dtype dtype, std::array<std::int64_t, 3> dims, std::uint64_t seed, double deviation) {
  return {dtype, dims, random_bytes(dtype, dims[0] * dims[1] * dims[2], seed, deviation).data()};
}

Pair empty_pair(Dtype dtype, std::array<std::int64_t, 3> dims) {
  const std::vector<std::byte> bytes(static_cast<std::size_t>(dims[0] * dims[1] * dims[2] * size_of(dtype)),
                                     std::byte{0xff});
  return {dtype, dims, bytes.data()};
}

Pair zero_pair(Dtype dtype, std::array<std::int64_t, 3> dims) {
  const std::vector<std::byte> bytes(static_cast<std::size_t>(dims[0] * dims[1] * dims[2] * size_of(dtype)));
  return {dtype, dims, bytes.data()};
}

Pair index_pair(const std::vector<std::int32_t>& values, std::array<std::int64_t, 3> dims) {
  return {Dtype::I32, dims, values.data()};
}

void twins(const std::function<void(kernels::Kernels&, Side)>& call) {
  static const std::unique_ptr<kernels::Kernels> cpu = kernels::cpu_kernels(2);
  call(*cpu, Side::Cpu);
  call(device().kernels(0), Side::Gpu);
  device().synchronize(0);
}

void check_close(const Pair& pair, double tolerance) {
  const std::vector<double> want = pair.values(Side::Cpu), got = pair.values(Side::Gpu);
  double squares = 0, finite = 0;
  for (const double value : want) {
    if (!std::isfinite(value)) continue;
    squares += value * value;
    ++finite;
  }
  const double size = std::sqrt(squares / std::max(finite, 1.0));
  double worst = 0;
  std::size_t at = 0, wrong = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    double off = 0;
    if (std::isfinite(want[i]) && std::isfinite(got[i])) {
      off = std::abs(got[i] - want[i]) / std::max({size, std::abs(want[i]), 1e-300});
    } else if (!(want[i] == got[i] || (std::isnan(want[i]) && std::isnan(got[i])))) {
      off = HUGE_VAL;
    }
    if (off > tolerance) ++wrong;
    if (off <= worst) continue;
    worst = off;
    at = i;
  }
  INFO("element " << at << " of " << want.size() << ": " << (got.empty() ? 0 : got[at]) << ", not "
                  << (want.empty() ? 0 : want[at]) << "; " << wrong << " are off");
  CHECK(worst <= tolerance);
}

void check_equal(const Pair& pair) {
  const std::vector<std::byte> got = pair.gpu_bytes();
  const auto* want = static_cast<const std::byte*>(pair.on(Side::Cpu).data);
  std::size_t differ = 0;
  for (std::size_t i = 0; i < got.size(); ++i) differ += got[i] != want[i] ? 1 : 0;
  CHECK(differ == 0);
}

}  // namespace trainyard::gpu
