#include <fmt/format.h>

#include "models/program/program.h"

namespace trainyard {

namespace {

std::string text_of(const Shape& shape) {
  std::string text = "[";
  for (int i = 0; i < shape.rank; ++i)
    text += (i > 0 ? "," : "") + std::to_string(shape.dims[static_cast<std::size_t>(i)]);
  return text + "]";
}

template <class Ids>
std::string joined(const Ids& ids, const char* prefix) {
  std::string text;
  for (const auto id : ids) text += fmt::format("{}{}{}", text.empty() ? "" : " ", prefix, id);
  return text;
}

std::string attributes(const Op& op) {
  const OpAttributes& a = op.attr;
  std::string text;
  const auto add = [&](bool shown, const char* format, const auto&... args) {
    if (shown) text += " " + fmt::format(fmt::runtime(format), args...);
  };
  add(op.flops > 0 && a.m > 0, "m={} n={} k={}", a.m, a.n, a.k);
  add(a.trans_a, "trans_a");
  add(a.trans_b, "trans_b");
  add(a.accumulate, "accumulate");
  add(a.has_bias, "bias");
  add(a.alpha != 1, "alpha={:g}", a.alpha);
  add(a.scale != 1, "scale={:g}", a.scale);
  add(a.softcap != 0, "softcap={:g}", a.softcap);
  add(a.heads > 0, "heads={}/{}x{}", a.heads, a.kv_heads, a.head_dim);
  add(a.cp > 1, "cp={}", a.cp);
  add(a.hop >= 0, "hop={}", a.hop);
  add(a.window > 0, "window={}", a.window);
  add(a.alibi_heads > 0, "alibi={}", a.alibi_heads);
  add(a.rope, "rope={:g}", a.rope_theta);
  add(a.top_k > 0, "top_k={} experts={}/{}", a.top_k, a.local_experts, a.experts);
  add(a.rows_bound > 0, "rows<={}x{} fill={:.4g}", a.segments, a.rows_bound, a.fill);
  add(a.reverse, "reverse");
  add(a.in_place, "in_place");
  add(a.reduce == Reduce::Max, "max");
  add(a.bucket >= 0, "bucket={}", a.bucket);
  return text;
}

void dump_block(std::string& out, std::size_t index, const Block& block) {
  out += fmt::format("block {} {}\n", index, block.name);
  for (std::size_t r = 0; r < kRoleCount; ++r) {
    if (block.frame_bytes[r] > 0)
      out += fmt::format("  frame {} {} bytes\n", to_string(static_cast<Role>(r)), block.frame_bytes[r]);
  }
  for (std::size_t t = 0; t < block.tensors.size(); ++t) {
    const Tensor& tensor = block.tensors[t];
    out += fmt::format("  %{} {} {}{} {}+{}\n", t, tensor.name, to_string(tensor.dtype), text_of(tensor.shape),
                       to_string(tensor.role), tensor.offset_bytes);
  }
  for (std::size_t o = 0; o < block.ops.size(); ++o) {
    const Op& op = block.ops[o];
    out += fmt::format("  #{} {} {} {}", o, to_string(op.stream), to_string(op.kind), op.label);
    if (is_communication(op.kind)) out += fmt::format(" over {}", to_string(op.group));
    out += fmt::format(" ({}) -> ({})", joined(op.in, "%"), joined(op.out, "%"));
    if (!op.deps.empty()) out += " after " + joined(op.deps, "#");
    out += attributes(op);
    if (op.flops > 0) out += fmt::format(" flops={:.6g}", op.flops);
    out += fmt::format(" read={:.6g} written={:.6g}", op.bytes_read, op.bytes_written);
    if (op.payload_bytes > 0) out += fmt::format(" payload={:.6g}", op.payload_bytes);
    out += "\n";
  }
}

void dump_chunk(std::string& out, std::size_t index, const Chunk& chunk) {
  out += fmt::format("  chunk {} model_chunk={} layers={}+{}{}{}\n", index, chunk.model_chunk, chunk.first_layer,
                     chunk.layers, chunk.has_embedding ? " embedding" : "", chunk.has_head ? " head" : "");
  for (std::size_t b = 0; b < chunk.buckets.size(); ++b) {
    const Bucket& bucket = chunk.buckets[b];
    out += fmt::format("    bucket {} over {} elements={} shard={} params@{} grads@{} optimizer@{}\n", b,
                       to_string(bucket.group), bucket.elements, bucket.shard_elements, bucket.param_offset_bytes,
                       bucket.grad_offset_bytes, bucket.optimizer_offset_bytes);
    for (const Param& param : bucket.params) {
      const auto split = [](Split s) { return s == Split::Tp ? "tp" : s == Split::Ep ? "ep" : "-"; };
      out += fmt::format("      {} {} split=({}{},{}) at {}{}{}{}\n", param.name, text_of(param.local_shape),
                         param.expert_parallel ? "ep," : "", split(param.split0), split(param.split1),
                         param.offset_elements, param.decay ? " decay" : "", param.tp_partial ? " tp_partial" : "",
                         param.tied_copy ? " tied_copy" : "");
      if (param.init_scale != 1 || param.rate_scale != 1) {
        out.pop_back();
        out += fmt::format(" init*{:g} rate*{:g}\n", param.init_scale, param.rate_scale);
      }
    }
  }
}

void dump_item(std::string& out, const StepProgram& program, std::size_t index, const Item& item) {
  out += fmt::format("  item {}", index);
  if (item.block >= 0) {
    out += fmt::format(" {} chunk={} micro_batch={}", program.block(item).name, item.chunk, item.micro_batch);
    for (std::size_t r = 0; r < kRoleCount; ++r) {
      if (item.frames[r] >= 0) out += fmt::format(" {}=f{}", to_string(static_cast<Role>(r)), item.frames[r]);
    }
  } else {
    out += fmt::format(" batch on {}", to_string(item.stream));
    for (const Transfer& move : item.transfers) {
      out += fmt::format(" [{} {} chunk={} micro_batch={} {} stage {} f{}{} {} bytes]", move.send ? "send" : "receive",
                         move.backward ? "gradient" : "activation", move.model_chunk, move.micro_batch,
                         move.send ? "to" : "from", move.peer_stage, move.frame, move.block_of_tp ? "[tp]" : "",
                         move.bytes);
    }
  }
  for (const Wait& wait : item.waits) {
    out += wait.op < 0 ? fmt::format(" wait {}", wait.item) : fmt::format(" wait {}#{}", wait.item, wait.op);
  }
  out += "\n";
}

}  // namespace

std::string dump(const StepProgram& program) {
  std::string out = fmt::format("program {} tp={} cp={} ep={} pp={} dp={}\n", program.model.name, program.plan.tp,
                                program.plan.cp, program.plan.ep, program.plan.pp, program.plan.dp);
  for (std::size_t b = 0; b < program.blocks.size(); ++b) dump_block(out, b, program.blocks[b]);
  for (const StageProgram& stage : program.stages) {
    out += fmt::format("stage {} arena={} bytes\n", stage.stage, stage.arena_bytes);
    for (std::size_t c = 0; c < stage.chunks.size(); ++c) dump_chunk(out, c, stage.chunks[c]);
    for (std::size_t f = 0; f < stage.frames.size(); ++f) {
      const Frame& frame = stage.frames[f];
      out += fmt::format("  frame f{} {} chunk={} micro_batch={} {} bytes at {} items {}..{}\n", f,
                         to_string(frame.role), frame.chunk, frame.micro_batch, frame.bytes, frame.offset_bytes,
                         frame.first_item, frame.last_item);
    }
    for (std::size_t i = 0; i < stage.items.size(); ++i) dump_item(out, program, i, stage.items[i]);
  }
  return out;
}

std::string label_of(const StepProgram& program, const StageProgram& stage, std::int32_t item_index, OpId op) {
  const Item& item = stage.items[static_cast<std::size_t>(item_index)];
  if (op >= 0) return program.block(item).ops[static_cast<std::size_t>(op)].label;
  std::string text;
  for (const Transfer& move : item.transfers) {
    text += fmt::format("{}{} {} {}", text.empty() ? "" : ", ", move.send ? "send" : "receive",
                        move.backward ? "gradient" : "activation", move.micro_batch);
  }
  return text;
}

}  // namespace trainyard
