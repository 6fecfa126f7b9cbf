// The same kernels in f32 and bf16: close to float64, and the same bits every time.
#include <catch2/catch.hpp>

#include <algorithm>
#include <cmath>

#include "tests/kernels/arrays.h"

using namespace trainyard;
using namespace trainyard::kernels;
using namespace trainyard::kernels::test;

namespace {

// A copy of an array in other storage.
struct Stored {
  std::vector<std::byte> bytes;
  Tensor tensor;
  Stored(Array& from, Dtype dtype, Kernels& cpu)
      : bytes(static_cast<std::size_t>(from.tensor().size() * size_of(dtype))) {
    tensor = {bytes.data(), dtype, from.dims};
    std::vector<float> narrow(from.values.begin(), from.values.end());
    cpu.copy({narrow.data(), Dtype::F32, from.dims}, tensor);
  }
  std::vector<double> values(Kernels& cpu) const {
    std::vector<float> narrow(static_cast<std::size_t>(tensor.size()));
    cpu.copy(tensor, {narrow.data(), Dtype::F32, tensor.dims});
    return {narrow.begin(), narrow.end()};
  }
};

template <class Values>
double distance(const std::vector<double>& got, const Values& want) {
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    difference += (got[i] - want[i]) * (got[i] - want[i]);
    size += want[i] * want[i];
  }
  return std::sqrt(difference / size);
}

}  // namespace

TEST_CASE("bf16 rounds to the nearest, ties to even", "[kernels]") {
  const auto cpu = cpu_kernels();
  // 1 + 2^-8 lies between 1 and 1 + 2^-7: to the even one; a little more goes up.
  std::vector<float> from{1.00390625F, 1.0039064F, 1.01171875F, -1.00390625F, 3.4e38F, NAN};
  std::vector<std::uint16_t> bits(from.size());
  const auto n = static_cast<std::int64_t>(from.size());
  cpu->copy({from.data(), Dtype::F32, {n, 1, 1}}, {bits.data(), Dtype::Bf16, {n, 1, 1}});
  CHECK(bits[0] == 0x3f80);
  CHECK(bits[1] == 0x3f81);
  CHECK(bits[2] == 0x3f82);
  CHECK(bits[3] == 0xbf80);
  CHECK(bits[4] == 0x7f80);
  CHECK((bits[5] & 0x7fc0) == 0x7fc0);
}

TEST_CASE("products and attention in narrow storage are near float64, and repeat", "[kernels]") {
  const auto cpu = cpu_kernels();
  const auto dtype = GENERATE(Dtype::F32, Dtype::Bf16);
  const double tolerance = dtype == Dtype::F32 ? 1e-6 : 1e-2;
  SECTION("matmul") {
    Array a("a", 33, 65), b("b", 17, 65), c(33, 17);
    const Gemm gemm{33, 17, 65, false, true};
    cpu->matmul(gemm, a.tensor(), b.tensor(), {}, c.tensor());
    Stored x(a, dtype, *cpu), y(b, dtype, *cpu), z(c, dtype, *cpu), again(c, dtype, *cpu);
    cpu->matmul(gemm, x.tensor, y.tensor, {}, z.tensor);
    cpu->matmul(gemm, x.tensor, y.tensor, {}, again.tensor);
    CHECK(distance(z.values(*cpu), c.values) < tolerance);
    CHECK(z.bytes == again.bytes);
  }
  SECTION("attention") {
    AttentionShape shape;
    shape.heads = {4, 2, 8};
    shape.scale = 0.35;
    Array q("q", 100, 32), k("k", 100, 16), v("v", 100, 16), o(100, 32), lse(100, 4);
    cpu->attention(shape, q.tensor(), k.tensor(), v.tensor(), o.tensor(), lse.tensor());
    Stored sq(q, dtype, *cpu), sk(k, dtype, *cpu), sv(v, dtype, *cpu), so(o, dtype, *cpu), sl(lse, Dtype::F32, *cpu);
    cpu->attention(shape, sq.tensor, sk.tensor, sv.tensor, so.tensor, sl.tensor);
    CHECK(distance(so.values(*cpu), o.values) < tolerance);
  }
}

TEST_CASE("a hash tells any change of any byte", "[kernels]") {
  const auto cpu = cpu_kernels();
  Array x("x", 1000);
  const std::uint64_t before = cpu->hash(x.tensor());
  CHECK(cpu->hash(x.tensor()) == before);
  x.values[777] = std::nextafter(x.values[777], 1e9);
  CHECK(cpu->hash(x.tensor()) != before);
}

TEST_CASE("dropout's masks are those of the seed, and keep the share that they should", "[kernels]") {
  const auto cpu = cpu_kernels();
  constexpr std::int64_t kRows = 16, kColumns = 256;
  std::vector<float> x(kRows * kColumns, 1), y(x.size());
  std::vector<std::int32_t> samples(kRows, 3), positions(kRows);
  for (std::int32_t t = 0; t < kRows; ++t) positions[static_cast<std::size_t>(t)] = t;
  const auto mask = [&](std::uint64_t seed, std::int64_t step) {
    cpu->dropout({seed, step, 0, 0, 0.25}, {x.data(), Dtype::F32, {kRows, kColumns, 1}},
                 {samples.data(), Dtype::I32, {kRows, 1, 1}}, {positions.data(), Dtype::I32, {kRows, 1, 1}},
                 {y.data(), Dtype::F32, {kRows, kColumns, 1}});
    return y;
  };
  CHECK(mask(1, 0) == mask(1, 0));
  CHECK(mask(1, 0) != mask(2, 0));
  CHECK(mask(1, 0) != mask(1, 1));
  CHECK(mask(1, 2) != mask(2, 1));
  const auto kept = mask(1, 0).size() - static_cast<std::size_t>(std::count(y.begin(), y.end(), 0.0F));
  CHECK(static_cast<double>(kept) / (kRows * kColumns) == Approx(0.75).margin(0.03));  // 4 standard deviations
}
