// What norms, element-wise kernels, embeddings, the layouts around attention and the loss take beside what they move.

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "models/base/dtype.h"
#include "tests/gpu/twin.h"

namespace trainyard::gpu {

namespace {

using kernels::Act;
using kernels::Kernels;
using kernels::Tensor;
using Int = std::int64_t;

constexpr Int kRows = 8192;

Tensor matrix(Dtype dtype, Int rows, Int columns) { return bench_tensor(dtype, {rows, columns, 1}); }

// Uniform below `bound`.
Tensor index_tensor(Int count, std::uint64_t bound) {
  std::mt19937_64 random(1);
  std::vector<std::int32_t> values;
  for (Int i = 0; i < count; ++i) values.push_back(static_cast<std::int32_t>(random() % bound));
  Tensor indices = bench_tensor(Dtype::I32, {count, 1, 1});
  device().copy_to_device(static_cast<std::byte*>(indices.data), reinterpret_cast<const std::byte*>(values.data()),
                          count * size_of(Dtype::I32), 0);
  device().synchronize(0);
  return indices;
}

std::string named(const char* what, Int rows, Int columns, Dtype dtype) {
  return std::string(what) + " " + std::to_string(rows) + " x " + std::to_string(columns) + " " + to_string(dtype);
}
double bytes_of(Dtype dtype, Int elements) { return static_cast<double>(elements * size_of(dtype)); }

void add_norms(BenchList& list, Dtype dtype, Int d, bool centred) {
  const kernels::NormShape shape{centred, 1e-5};
  const Tensor x = matrix(dtype, kRows, d), y = matrix(dtype, kRows, d), dy = matrix(dtype, kRows, d);
  const Tensor weight = matrix(dtype, d, 1), bias = centred ? matrix(dtype, d, 1) : Tensor{};
  const Tensor rstd = matrix(Dtype::F32, kRows, 1), mean = centred ? matrix(Dtype::F32, kRows, 1) : Tensor{};
  const Tensor dweight = matrix(Dtype::F32, d, 1), dbias = centred ? matrix(Dtype::F32, d, 1) : Tensor{};
  const char* kind = centred ? "layer norm" : "rms norm";
  list.push_back({named(kind, kRows, d, dtype), 2 * bytes_of(dtype, kRows * d), 0,
                  [=](Kernels& kernels) { kernels.norm(shape, x, weight, bias, y, rstd, mean); }});
  list.push_back({named((std::string(kind) + " grad").c_str(), kRows, d, dtype), 3 * bytes_of(dtype, kRows * d), 0,
                  [=](Kernels& kernels) { kernels.norm_grad(shape, dy, x, weight, rstd, mean, y, dweight, dbias); }});
}

void add_activations(BenchList& list, Act act, const char* name, bool gated, Int f) {
  const Dtype dtype = Dtype::Bf16;
  const Int width = gated ? 2 * f : f;
  const Tensor h = matrix(dtype, kRows, width), dh = matrix(dtype, kRows, width), a = matrix(dtype, kRows, f);
  const std::string kind = std::string(name) + (gated ? " gated" : "");
  list.push_back({named(kind.c_str(), kRows, f, dtype), bytes_of(dtype, kRows * (width + f)), 0,
                  [=](Kernels& kernels) { kernels.activation(act, gated, h, {}, a); }});
  list.push_back({named((kind + " grad").c_str(), kRows, f, dtype), bytes_of(dtype, kRows * (2 * width + f)), 0,
                  [=](Kernels& kernels) { kernels.activation_grad(act, gated, a, h, {}, dh); }});
}

void add_elementwise(BenchList& list, Dtype dtype, Int d) {
  const Tensor a = matrix(dtype, kRows, d), b = matrix(dtype, kRows, d), c = matrix(dtype, kRows, d);
  const Tensor bias = matrix(dtype, d, 1), dbias = matrix(Dtype::F32, d, 1);
  const Tensor samples = index_tensor(kRows, 100000), positions = index_tensor(kRows, 4096);
  const double bytes = bytes_of(dtype, kRows * d);
  list.push_back({named("add", kRows, d, dtype), 3 * bytes, 0, [=](Kernels& kernels) { kernels.add(a, b, c); }});
  list.push_back(
      {named("bias add", kRows, d, dtype), 2 * bytes, 0, [=](Kernels& kernels) { kernels.bias_add(a, bias, c); }});
  list.push_back(
      {named("bias grad", kRows, d, dtype), bytes, 0, [=](Kernels& kernels) { kernels.bias_grad(a, dbias); }});
  list.push_back({named("dropout", kRows, d, dtype), 2 * bytes, 0, [=](Kernels& kernels) {
                    kernels.dropout({1, 2, 3, 4, 0.1}, a, samples, positions, c);
                  }});
}

// Rows of a table count once for each row that is read; a gradient's are read and written once for each index that is
// met, nearly all of them distinct where the table is long.
void add_embeddings(BenchList& list, Int vocabulary, Int d) {
  const Dtype dtype = Dtype::Bf16;
  const Tensor table = matrix(dtype, vocabulary, d), dtable = matrix(Dtype::F32, vocabulary, d);
  const Tensor y = matrix(dtype, kRows, d), tokens = index_tensor(kRows, static_cast<std::uint64_t>(vocabulary));
  const Int met = std::min(kRows, vocabulary);
  const double bytes = bytes_of(dtype, kRows * d);
  const std::string of = " of " + std::to_string(vocabulary);
  list.push_back({named("embedding", kRows, d, dtype) + of, 2 * bytes, 0,
                  [=](Kernels& kernels) { kernels.embedding(tokens, table, 1, 0, y); }});
  list.push_back({named("embedding grad", kRows, d, dtype) + of, bytes + 2 * bytes_of(Dtype::F32, met * d), 0,
                  [=](Kernels& kernels) { kernels.embedding_grad(tokens, y, 1, 0, dtable); }});
  list.push_back({named("position add", kRows, d, dtype) + of, 3 * bytes, 0,
                  [=](Kernels& kernels) { kernels.position_add(y, tokens, table, y); }});
}

void add_layouts(BenchList& list, const kernels::Heads& heads) {
  const Dtype dtype = Dtype::Bf16;
  const Int nq = heads.query * heads.dim, nk = heads.key * heads.dim;
  const Tensor packed = matrix(dtype, kRows, nq + 2 * nk), positions = index_tensor(kRows, 8192);
  const Tensor q = matrix(dtype, kRows, nq), k = matrix(dtype, kRows, nk), v = matrix(dtype, kRows, nk);
  const double bytes = 2 * bytes_of(dtype, packed.size());
  list.push_back({named("split qkv", kRows, nq + 2 * nk, dtype), bytes, 0,
                  [=](Kernels& kernels) { kernels.split_qkv(heads, 5e5, packed, positions, q, k, v); }});
  list.push_back({named("merge qkv grad", kRows, nq + 2 * nk, dtype), bytes, 0,
                  [=](Kernels& kernels) { kernels.merge_qkv_grad(heads, 5e5, q, k, v, positions, packed); }});
  std::vector<Tensor> parts;
  for (int p = 0; p < 4; ++p) {
    parts.push_back(matrix(dtype, kRows, nq));
    parts.push_back(matrix(Dtype::F32, kRows, heads.query));
  }
  const Tensor lse = matrix(Dtype::F32, kRows, heads.query);
  list.push_back({named("attention merge of 4", kRows, nq, dtype), 5 * bytes_of(dtype, kRows * nq), 0,
                  [=](Kernels& kernels) { kernels.attention_merge(heads, parts, q, lse); }});
}

void add_losses(BenchList& list, Int vocabulary, double softcap) {
  const Dtype dtype = Dtype::Bf16;
  const kernels::Xent xent{1, softcap, 1e-4, 0};
  const Tensor logits = matrix(dtype, kRows, vocabulary), dlogits = matrix(dtype, kRows, vocabulary);
  const Tensor max = matrix(Dtype::F32, kRows, 1), stats = matrix(Dtype::F32, kRows, 2);
  const Tensor loss = matrix(Dtype::F32, 1, 1), labels = index_tensor(kRows, static_cast<std::uint64_t>(vocabulary));
  const double bytes = bytes_of(dtype, kRows * vocabulary);
  const std::string with = softcap > 0 ? " capped" : "";
  list.push_back({named("xent max", kRows, vocabulary, dtype) + with, bytes, 0,
                  [=](Kernels& kernels) { kernels.xent_max(xent, logits, max); }});
  list.push_back({named("xent sum", kRows, vocabulary, dtype) + with, bytes, 0,
                  [=](Kernels& kernels) { kernels.xent_sum(xent, logits, max, labels, stats); }});
  list.push_back({named("xent grad", kRows, vocabulary, dtype) + with, 2 * bytes, 0,
                  [=](Kernels& kernels) { kernels.xent_grad(xent, logits, max, stats, labels, dlogits); }});
  if (softcap > 0) return;
  list.push_back({named("xent loss", kRows, 1, Dtype::F32), 3 * bytes_of(Dtype::F32, kRows), 0,
                  [=](Kernels& kernels) { kernels.xent_loss(xent, max, stats, loss); }});
}

}  // namespace

void add_dense_benches(BenchList& list) {
  for (const Int d : {1024, 4096, 8192, 16384}) add_norms(list, Dtype::Bf16, d, false);
  add_norms(list, Dtype::Bf16, 4096, true);
  add_norms(list, Dtype::F32, 4096, false);
  add_activations(list, Act::Silu, "silu", true, 14336);
  add_activations(list, Act::GeluTanh, "gelu tanh", false, 16384);
  add_activations(list, Act::Gelu, "gelu", false, 16384);
  add_elementwise(list, Dtype::Bf16, 4096);
  add_elementwise(list, Dtype::F32, 4096);
  add_embeddings(list, 128256, 4096);
  add_embeddings(list, 2048, 4096);
  add_layouts(list, {32, 8, 128});
  add_losses(list, 32000, 0);
  add_losses(list, 128256, 0);
  add_losses(list, 32000, 30);
}

}  // namespace trainyard::gpu
