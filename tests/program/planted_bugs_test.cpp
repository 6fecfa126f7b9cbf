// Bugs that lowering could have, planted one at a time into programs that are right, and the proof that catches each.
// A test suite is worth what it notices.
#include <catch2/catch.hpp>

#include <algorithm>
#include <cmath>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/program/reference.h"
#include "tests/program/tiny_models.h"
#include "tests/program/training.h"

using namespace trainyard;

namespace {

constexpr int kSteps = 3;

// --- what catches bugs

// What came of training: its numbers, or what it threw.
struct Verdict {
  std::optional<Run> run;
  std::string error;
};

Verdict verdict(const StepProgram& program, std::uint64_t seed) {
  try {
    return {train(program, kSteps, seed), ""};
  } catch (const std::runtime_error& error) {
    return {std::nullopt, error.what()};
  }
}

bool near(double a, double b, double tolerance) { return std::fabs(a - b) <= tolerance * std::fabs(b); }

bool near(const Weights& a, const Weights& b, double tolerance) {
  for (const auto& [name, tensor] : b) {
    const auto found = a.find(name);
    if (found == a.end()) return false;
    for (std::size_t i = 0; i < tensor.data.size(); ++i) {
      if (!(std::fabs(found->second.data[i] - tensor.data[i]) <= tolerance)) return false;
    }
  }
  return true;
}

// "any plan, same loss", as a question: losses, norms, gradients and weights are one rank's.
bool trains_as(const Run& run, const Run& want) {
  for (std::size_t i = 0; i < want.steps.size(); ++i) {
    if (!near(run.steps[i].loss, want.steps[i].loss, 1e-11)) return false;
    if (!near(run.steps[i].grad_norm, want.steps[i].grad_norm, 1e-10)) return false;
  }
  return near(run.gradients, want.gradients, 1e-9) && near(run.weights, want.weights, 1e-7);
}

// Which proof is to notice.
enum class Proof {
  Check,      // models/program/check.cpp, without running anything
  SameLoss,   // one rank's losses, gradients and weights
  AnyOrder,   // other bits in some order of ready ops, freed memory being poisoned with NaN
  Agreement,  // ranks agree about the loss, the norm and copies of parameters, and all are numbers
  Deadlock,   // the program does not end
};

bool notices(Proof proof, const StepProgram& program, const Run& one_rank) {
  if (proof == Proof::Check) return !check(program).empty();
  const Verdict first = verdict(program, 1);
  switch (proof) {
    case Proof::Check: break;
    case Proof::SameLoss: return first.run && !trains_as(*first.run, one_rank);
    case Proof::AnyOrder:
      for (std::uint64_t seed = 2; seed < 12; ++seed) {
        const Verdict other = verdict(program, seed);
        if (!first.run || !other.run || !same_bits(*first.run, *other.run)) return true;
      }
      return false;
    case Proof::Agreement: return first.error.find("disagree") != std::string::npos;
    case Proof::Deadlock: return first.error.find("deadlock") != std::string::npos;
  }
  return false;
}

// --- how they are planted

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// Changes every op of this kind whose label ends so; there must be one.
void change(StepProgram& program, OpKind kind, const std::string& label_end, const std::function<void(Op&)>& how) {
  int changed = 0;
  for (Block& block : program.blocks) {
    for (Op& op : block.ops) {
      if (op.kind != kind || !ends_with(op.label, label_end)) continue;
      how(op);
      ++changed;
    }
  }
  REQUIRE(changed > 0);
}

// What a rank has stands for what it should have got from others.
void keep_own(Op& op) {
  op.kind = OpKind::Copy;
  op.stream = Stream::Compute;
}
void leave_out(Op& op) {
  op.kind = OpKind::Join;
  op.in.clear();
  op.out.clear();
}
void no_dependencies(Op& op) { op.deps.clear(); }

Param& find_param(StepProgram& program, const std::string& name_end) {
  for (StageProgram& stage : program.stages) {
    for (Chunk& chunk : stage.chunks) {
      for (Bucket& bucket : chunk.buckets) {
        for (Param& param : bucket.params) {
          if (ends_with(param.name, name_end)) return param;
        }
      }
    }
  }
  throw std::runtime_error("no parameter " + name_end);
}

struct Bug {
  const char* name;
  Proof proof;
  ModelFamily family;
  std::function<void(ParallelPlan&)> plan;
  std::function<void(StepProgram&)> plant;
};

void tensor_parallel(ParallelPlan& plan) { plan.tp = 2; }
void sequence_parallel(ParallelPlan& plan) { plan.tp = 2, plan.sequence_parallel = true; }
void data_parallel(ParallelPlan& plan) { plan.dp = 2; }
void sharded_optimizer(ParallelPlan& plan) { plan.dp = 2, plan.zero_stage = 1; }
void sharded_parameters(ParallelPlan& plan) { plan.dp = 2, plan.zero_stage = 3; }
void hybrid_sharding(ParallelPlan& plan) { plan.dp = 4, plan.zero_stage = 1, plan.zero_shard_size = 2; }
void context_parallel(ParallelPlan& plan) { plan.cp = 2; }
void ring(ParallelPlan& plan) {
  plan.cp = 2;
  plan.cp_comm_type = CpCommType::P2p;
}
void expert_parallel(ParallelPlan& plan) { plan.dp = plan.ep = 2; }
void pipeline(ParallelPlan& plan) { plan.pp = 2; }
void one_rank(ParallelPlan&) {}

std::vector<Bug> bugs() {
  using F = ModelFamily;
  return {
      // Communication that is missing, or is not what it should be.
      {"the all-reduce behind a row-parallel product is missing", Proof::Agreement, F::Llama, tensor_parallel,
       [](StepProgram& p) { change(p, OpKind::AllReduce, "mlp.reduce", keep_own); }},
      {"the all-reduce of a column-parallel product's gradient is missing", Proof::Agreement, F::Llama, tensor_parallel,
       [](StepProgram& p) { change(p, OpKind::AllReduce, "attn.gather.grad", keep_own); }},
      {"the maximum of the loss is of this vocabulary shard alone", Proof::Agreement, F::Llama, tensor_parallel,
       [](StepProgram& p) { change(p, OpKind::AllReduce, "loss.max.reduce", keep_own); }},
      {"a maximum is reduced as a sum", Proof::SameLoss, F::Llama, tensor_parallel,
       [](StepProgram& p) {
         change(p, OpKind::AllReduce, "loss.sum.reduce", [](Op& op) { op.attr.reduce = Reduce::Max; });
       }},
      {"gradients of replicated norms stay partial under sequence parallelism", Proof::Agreement, F::Llama,
       sequence_parallel,
       [](StepProgram& p) {
         for (Block& block : p.blocks) {
           if (block.kind != BlockKind::GradientSync && block.kind != BlockKind::Backward) continue;
           for (Op& op : block.ops) {
             if (op.stream == Stream::Tp && op.kind == OpKind::AllReduce) leave_out(op);
           }
         }
       }},
      {"gradients are not reduced over data-parallel ranks", Proof::Agreement, F::Llama, data_parallel,
       [](StepProgram& p) { change(p, OpKind::AllReduce, "dp_sync", leave_out); }},
      {"the gather of updated parameters is missing: weights go stale", Proof::SameLoss, F::Llama, sharded_optimizer,
       [](StepProgram& p) { change(p, OpKind::AllGather, ".gather", leave_out); }},
      {"shards are not summed over their copies", Proof::Agreement, F::Llama, hybrid_sharding,
       [](StepProgram& p) { change(p, OpKind::AllReduce, "copies_sync", leave_out); }},
      {"a layer of ZeRO 3 computes before its parameters have arrived", Proof::Check, F::Llama, sharded_parameters,
       [](StepProgram& p) {
         for (StageProgram& stage : p.stages) {
           for (Item& item : stage.items) {
             if (item.block >= 0 && p.block(item).kind == BlockKind::Forward) item.waits.clear();
           }
         }
       }},
      {"context ranks attend to their own keys only", Proof::SameLoss, F::Llama, context_parallel,
       [](StepProgram& p) {
         change(p, OpKind::Attention, "attn.core", [](Op& op) { op.attr.cp = 1; });
         change(p, OpKind::AttentionGrad, "attn.core.grad", [](Op& op) { op.attr.cp = 1; });
       }},
      {"ring attention takes a block for the one before it", Proof::SameLoss, F::Llama, ring,
       [](StepProgram& p) {
         change(p, OpKind::Attention, "attn.core1", [](Op& op) { op.attr.hop = 0; });
         change(p, OpKind::AttentionGrad, "attn.core1.grad", [](Op& op) { op.attr.hop = 0; });
       }},
      {"queries forget what another rank's keys add to their gradient", Proof::SameLoss, F::Llama, ring,
       [](StepProgram& p) { change(p, OpKind::Accumulate, ".q.grad.add", leave_out); }},
      {"attention does not wait for the block that comes around", Proof::AnyOrder, F::Llama, ring,
       [](StepProgram& p) { change(p, OpKind::Attention, "attn.core1", no_dependencies); }},
      {"experts receive each other's counts", Proof::Agreement, F::Mixtral, expert_parallel,
       [](StepProgram& p) { change(p, OpKind::AllToAllCounts, "dispatch.counts", keep_own); }},
      {"a tied embedding's two copies are not summed", Proof::Agreement, F::Gpt3, pipeline,
       [](StepProgram& p) {
         for (Block& block : p.blocks) {
           for (Op& op : block.ops) {
             if (is_communication(op.kind) && op.group == Group::Embedding) leave_out(op);
           }
         }
       }},
      {"a receive takes another micro-batch's message", Proof::Deadlock, F::Llama, pipeline,
       [](StepProgram& p) {
         for (Item& item : p.stages[1].items) {
           for (Transfer& transfer : item.transfers) {
             if (!transfer.send && !transfer.backward) transfer.micro_batch += 1;
           }
         }
       }},
      // Arithmetic.
      {"gradients are averaged over a micro-batch instead of the global batch", Proof::SameLoss, F::Llama,
       data_parallel, [](StepProgram& p) { change(p, OpKind::XentGrad, "", [](Op& op) { op.attr.scale *= 2; }); }},
      {"the loss is averaged over too few tokens", Proof::SameLoss, F::Llama, data_parallel,
       [](StepProgram& p) { change(p, OpKind::XentLoss, "", [](Op& op) { op.attr.scale *= 2; }); }},
      {"the second micro-batch overwrites a gradient instead of adding to it", Proof::SameLoss, F::Llama, data_parallel,
       [](StepProgram& p) { change(p, OpKind::Matmul, "mlp.up.wgrad", [](Op& op) { op.attr.accumulate = false; }); }},
      {"the backward pass forgets rotary positions", Proof::SameLoss, F::Llama, tensor_parallel,
       [](StepProgram& p) { change(p, OpKind::MergeQkvGrad, "", [](Op& op) { op.attr.rope = false; }); }},
      {"the backward pass forgets the soft cap", Proof::SameLoss, F::Grok1, tensor_parallel,
       [](StepProgram& p) { change(p, OpKind::AttentionGrad, "", [](Op& op) { op.attr.softcap = 0; }); }},
      {"the backward pass forgets the scale of the embedding", Proof::SameLoss, F::Grok1, one_rank,
       [](StepProgram& p) { change(p, OpKind::EmbeddingGrad, "", [](Op& op) { op.attr.scale = 1; }); }},
      {"dropout draws other numbers in the backward pass", Proof::SameLoss, F::Llama, one_rank,
       [](StepProgram& p) {
         for (Block& block : p.blocks) {
           if (block.kind != BlockKind::Backward) continue;
           for (Op& op : block.ops) {
             if (op.kind == OpKind::Dropout) op.attr.salt += 1;
           }
         }
       }},
      {"probabilities are renormalised that should not be", Proof::SameLoss, F::Grok1, expert_parallel,
       [](StepProgram& p) { change(p, OpKind::RouterGrad, "", [](Op& op) { op.attr.renormalize = true; }); }},
      {"the gradient norm counts a replicated parameter on every rank", Proof::SameLoss, F::Llama, tensor_parallel,
       [](StepProgram& p) { find_param(p, "attn_norm.weight").split0 = Split::Tp; }},
      {"the gradient norm counts every copy of a shard", Proof::SameLoss, F::Llama, hybrid_sharding,
       [](StepProgram& p) {
         for (Bucket& bucket : p.stages[0].chunks[0].buckets) bucket.sharding.copies = Group::Tp;
       }},
      {"norms decay", Proof::SameLoss, F::Llama, tensor_parallel,
       [](StepProgram& p) { find_param(p, "attn_norm.weight").decay = true; }},
      // Order and memory.
      {"a product does not wait for its collective", Proof::AnyOrder, F::Llama, sequence_parallel,
       [](StepProgram& p) { change(p, OpKind::Matmul, "attn.qkv", no_dependencies); }},
      {"a collective starts before its operand is there", Proof::AnyOrder, F::Llama, sequence_parallel,
       [](StepProgram& p) { change(p, OpKind::ReduceScatter, "attn.reduce", no_dependencies); }},
      {"the optimizer does not wait for the reductions", Proof::AnyOrder, F::Llama, sharded_optimizer,
       [](StepProgram& p) {
         for (StageProgram& stage : p.stages) {
           for (Item& item : stage.items) {
             if (item.block >= 0 && p.block(item).kind == BlockKind::GradNorm) item.waits.clear();
           }
         }
       }},
      {"two micro-batches keep their activations in one place", Proof::SameLoss, F::Llama, pipeline,
       [](StepProgram& p) {
         std::vector<Frame*> saved;
         for (Frame& frame : p.stages[0].frames) {
           if (frame.role == Role::Saved) saved.push_back(&frame);
         }
         REQUIRE(saved.size() > 1);
         saved[1]->offset_bytes = saved[0]->offset_bytes;
       }},
      {"two transient tensors share a place while both are needed", Proof::Check, F::Llama, tensor_parallel,
       [](StepProgram& p) {
         for (Block& block : p.blocks) {
           for (Tensor& tensor : block.tensors) {
             if (tensor.role == Role::Transient) tensor.offset_bytes = 0;
           }
         }
       }},
      {"gradients are not cleared between steps", Proof::Agreement, F::Llama, data_parallel,
       [](StepProgram& p) { change(p, OpKind::Zero, "grads.zero", leave_out); }},
  };
}

}  // namespace

TEST_CASE("planted lowering bugs are caught, each by the proof that is named", "[program]") {
  const std::vector<Bug> all = bugs();
  const auto i = GENERATE_COPY(range(std::size_t{0}, all.size()));
  const Bug& bug = all[i];
  DYNAMIC_SECTION(bug.name) {
    INFO(bug.name);
    ModelSpec model = tiny_model(bug.family);
    if (std::string(bug.name).find("dropout") == 0) model.hidden_dropout = 0.2;
    ParallelPlan plan = tiny_plan();
    plan.global_batch = 4;
    plan.optimizer.clip_grad = 0.5;
    ParallelPlan single = plan;
    bug.plan(plan);
    const Run want = train(lower(model, single), kSteps, 1);
    StepProgram program = lower(model, plan);
    REQUIRE(check(program).empty());
    REQUIRE(trains_as(train(program, kSteps, 1), want));
    bug.plant(program);
    INFO("it gave: " << verdict(program, 1).error);
    CHECK(notices(bug.proof, program, want));
  }
}
