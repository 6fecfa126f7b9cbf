// Runs a step program on all logical ranks in one process, in float64, in the arenas that the
// memory plan lays out. Ready ops run in a random order drawn from a seed: a program whose
// dependencies are complete gives the same bits for every seed.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "models/base/random.h"
#include "models/program/program.h"
#include "tests/program/reference_ops.h"
#include "tests/program/safetensors.h"

namespace trainyard {

using Weights = std::map<std::string, GoldenTensor>;

/// What computes an op of one rank: see compute().
using Compute =
    std::function<void(const Op&, const OpContext&, const std::vector<View>& in, const std::vector<View>& out)>;

class Reference {
 public:
  /// The program must be lowered with Precision::F64.
  Reference(const StepProgram& program, std::uint64_t seed, Compute compute = trainyard::compute);

  /// Sets parameters, on every rank that holds a part of them, from full tensors by Hugging Face name.
  void set_weights(const Weights& weights);

  struct Step {
    double loss = 0;
    double grad_norm = 0;
  };
  /// One training step on `tokens` [global_batch, sequence_length + 1]. Throws std::runtime_error on
  /// deadlock, naming the ops that wait, on a tensor outside its frame, and when ranks disagree about
  /// the loss or the norm.
  Step step(const GoldenTensor& tokens);

  /// Full gradients of the last step, put together from the ranks that hold them. Throws
  /// std::runtime_error when copies (of data- and tensor-parallel ranks, of tied embeddings) differ in
  /// any bit, or hold NaN.
  [[nodiscard]] Weights gradients() const;
  /// Full master weights, likewise.
  [[nodiscard]] Weights weights() const;

 private:
  struct Launch {
    std::int32_t item;
    OpId op;
  };
  static constexpr std::size_t kPageBytes = 4096;
  struct alignas(kPageBytes) Page : std::array<std::byte, kPageBytes> {};
  struct Rank {
    std::int64_t id = 0;
    const StageProgram* stage = nullptr;
    /// Aligned as real arenas are: where an element lies may decide how it is rounded.
    std::vector<Page> arena;
    std::array<std::vector<Launch>, kStreamCount> queue;
    std::array<std::size_t, kStreamCount> head{};
    std::vector<std::int64_t> first;    // by item: its first op
    std::vector<bool> complete;         // by op
    std::vector<std::int32_t> toucher;  // by frame: the item that used it last in this step, or -1
  };
  using Match = std::tuple<std::int64_t, std::int64_t, bool, std::int32_t, std::int32_t>;

  void start_step(Rank& rank, const GoldenTensor& tokens);
  void fill_batch(Rank& rank, const GoldenTensor& tokens);
  bool ready(const Rank& rank, const Launch& launch) const;
  bool advance(Rank& rank, std::size_t stream);
  void touch(Rank& rank, std::int32_t item, std::int32_t frame);
  void finish(Rank& rank, std::size_t stream);
  bool run_collective(Rank& rank, std::size_t stream, const Op& op);
  bool run_transfers(Rank& rank, const Item& item, bool& posted);
  [[noreturn]] void report_deadlock() const;

  const Op* op_of(const Rank& rank, const Launch& launch) const;
  std::vector<View> views(Rank& rank, std::int32_t item_index, const std::vector<TensorId>& ids);
  std::byte* at(const Rank& rank, std::int32_t frame) const;
  double scalar(const Rank& rank, std::int64_t offset_bytes) const;
  Step scalars() const;

  // Visits every element of every parameter of every rank: (rank, chunk index, bucket, element in the
  // bucket, Hugging Face tensor name, element in it).
  template <class Visit>
  void for_each_element(Visit visit) const;

  const StepProgram& program_;
  Mesh mesh_;
  Compute compute_;
  std::vector<Rank> ranks_;
  RandomStream random_;
  std::int64_t steps_ = 0;
  std::map<Match, std::array<std::pair<Rank*, const Transfer*>, 2>> posted_;  // sender, receiver
};

}  // namespace trainyard
