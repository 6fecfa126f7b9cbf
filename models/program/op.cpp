#include "models/program/op.h"

#include "models/base/check.h"

namespace trainyard {

const char* to_string(OpKind kind) {
  static constexpr const char* kNames[] = {"Embedding",     "EmbeddingGrad",  "PositionAdd",
                                           "PositionGrad",  "Norm",           "NormGrad",
                                           "Matmul",        "BiasAdd",        "BiasGrad",
                                           "Activation",    "ActivationGrad", "Add",
                                           "Dropout",       "SplitQkv",       "MergeQkvGrad",
                                           "Attention",     "AttentionMerge", "AttentionGrad",
                                           "Router",        "RouterGrad",     "Permute",
                                           "PermuteGrad",   "Unpermute",      "UnpermuteGrad",
                                           "SortByExpert",  "GroupedMatmul",  "GroupedMatmulWgrad",
                                           "XentMax",       "XentSum",        "XentLoss",
                                           "XentGrad",      "AllReduce",      "AllGather",
                                           "ReduceScatter", "AllToAllCounts", "AllToAllV",
                                           "RingShift",     "SendRecv",       "Zero",
                                           "Copy",          "Accumulate",     "SquaredNorm",
                                           "AdamW",         "HostSync",       "Join"};
  static_assert(std::size(kNames) == kOpKindCount);
  return kNames[static_cast<int>(kind)];
}

const char* to_string(Stream stream) {
  static constexpr const char* kNames[] = {
      "compute",          "tp", "cp",       "ep", "pp", "pp.forward.send", "pp.forward.recv", "pp.backward.send",
      "pp.backward.recv", "dp", "dp.copies"};
  static_assert(std::size(kNames) == kStreamCount);
  return kNames[static_cast<int>(stream)];
}

bool is_communication(OpKind kind) {
  switch (kind) {
    case OpKind::AllReduce:
    case OpKind::AllGather:
    case OpKind::ReduceScatter:
    case OpKind::AllToAllCounts:
    case OpKind::AllToAllV:
    case OpKind::RingShift:
    case OpKind::SendRecv: return true;
    default: return false;
  }
}

}  // namespace trainyard
