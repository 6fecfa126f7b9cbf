// Reads hardware and software-stack profiles.

#include <fmt/format.h>

#include "models/cost/cost.h"
#include "models/spec/json_reader.h"

namespace trainyard {

namespace {

using nlohmann::json;

// Every constant says its unit, source and date; only the value is needed here.
void constant(ObjectReader& from, const char* key, double& out, NumberRange range) {
  from.require({key});
  from.object(key, [&](ObjectReader& entry) {
    std::string text;
    entry.require({"value", "unit", "source", "date"});
    entry.number("value", out, range).text("unit", text).text("source", text).text("date", text);
  });
}

// Two lists of equal length, the first rising.
void curve(ObjectReader& from, const char* x_key, const char* y_key, Curve& out) {
  const auto list = [&](const char* key, std::vector<double>& values) {
    const json* value = from.take(key);
    if (value != nullptr && value->is_array()) {
      for (const json& element : *value) values.push_back(element.is_number() ? element.get<double>() : -1);
    }
  };
  list(x_key, out.log2_size);
  list(y_key, out.value);
  bool good = !out.value.empty() && out.value.size() == out.log2_size.size();
  for (std::size_t i = 0; good && i < out.value.size(); ++i) {
    good = out.value[i] > 0 && (i == 0 || out.log2_size[i] > out.log2_size[i - 1]);
  }
  if (!good)
    from.problem(y_key, fmt::format("must be positive numbers, as many as the rising {}", x_key),
                 "run scenarios/profiles/fit.py again");
}

constexpr NumberRange kPositive{1e-12, 1e18}, kShare{1e-3, 1};

void read_node_constants(ObjectReader& from, HardwareProfile& profile) {
  constant(from, "peak_bf16_flops", profile.peak_bf16_flops, kPositive);
  constant(from, "peak_f32_flops", profile.peak_f32_flops, kPositive);
  constant(from, "memory_bytes", profile.memory_bytes, kPositive);
  constant(from, "nvlink_p2p_bytes_per_s", profile.nvlink_p2p_bytes_per_s, kPositive);
  constant(from, "nvlink_p2p_latency_s", profile.nvlink_p2p_latency_s, {0, 1});
  constant(from, "nic_latency_s", profile.nic_latency_s, {0, 1});
  constant(from, "nic_efficiency", profile.nic_efficiency, kShare);
}

void read_gpu_constants(ObjectReader& from, HardwareProfile& profile) {
  constant(from, "sms", profile.sms, {1, 10000});
  constant(from, "tree_step_s", profile.tree_step_s, {0, 1});
  constant(from, "memory_bytes_per_s", profile.memory_bytes_per_s, kPositive);
  constant(from, "memory_efficiency", profile.memory_efficiency, kShare);
  constant(from, "kernel_floor_s", profile.kernel_floor_s, {0, 1});
  constant(from, "gemm_efficiency", profile.gemm.efficiency, kShare);
  constant(from, "gemm_prologue_k", profile.gemm.prologue_k, {0, 1e6});
  constant(from, "gemm_quantisation", profile.gemm.quantisation, {0, 1});
  constant(from, "gemm_memory_efficiency", profile.gemm.memory_efficiency, kShare);
  constant(from, "gemm_relative_128x128", profile.gemm.relative_128x128, kShare);
  constant(from, "gemm_relative_64x128", profile.gemm.relative_64x128, kShare);
  constant(from, "gemm_relative_64x64", profile.gemm.relative_64x64, kShare);
  constant(from, "attention_backward_efficiency_ratio", profile.attention_backward_efficiency_ratio, {0.1, 2});
}

// One entry of op_rates.
OpRates read_rates(ObjectReader& entry) {
  OpRates rates;
  entry.require({"precision", "threads", "kinds"});
  entry
      .choice<Precision>("precision", rates.precision,
                         {{"bf16", Precision::Bf16}, {"f32", Precision::F32}, {"f64", Precision::F64}})
      .integer("threads", rates.threads, {1, 1024});
  entry.object("kinds", [&](ObjectReader& kinds) {
    for (int i = 0; i < kOpKindCount; ++i) {
      const auto kind = static_cast<OpKind>(i);
      if (!kinds.has(to_string(kind))) continue;
      kinds.object(to_string(kind), [&](ObjectReader& from) {
        OpRate& rate = rates.kinds[kind];
        double samples = 0, error = 0;  // for readers
        from.number("floor_s", rate.floor_s, {0, 10})
            .number("seconds_per_flop", rate.seconds_per_flop, {0, 1})
            .number("seconds_per_byte", rate.seconds_per_byte, {0, 1})
            .number("samples", samples)
            .number("median_error", error);
      });
    }
  });
  if (rates.kinds.count(OpKind::Add) == 0 || rates.kinds.count(OpKind::Matmul) == 0)
    entry.problem("kinds", "must have Add and Matmul at least", "run trainyard calibrate again");
  return rates;
}

void read_nvlink(ObjectReader& from, HardwareProfile& profile) {
  std::string text;
  from.text("unit", text).text("source", text).text("date", text);
  for (std::size_t kind = 0; kind < kCollectiveCount; ++kind) {
    const char* key = to_string(static_cast<Collective>(kind));
    from.require({key});
    from.objects(key, [&](ObjectReader& entry) {
      LinkCurve link;
      entry.require({"ranks"});
      entry.integer("ranks", link.ranks, {2, 100000});
      curve(entry, "log2_bytes", "seconds", link.seconds);
      profile.nvlink[kind].push_back(link);
    });
    if (profile.nvlink[kind].empty())
      from.problem(key, "must have a curve for one number of ranks at least", "run scenarios/profiles/fit.py again");
  }
}

void read_attention(ObjectReader& from, HardwareProfile& profile) {
  std::string text;
  from.text("unit", text).text("date", text).require({"kernels"});
  from.objects("kernels", [&](ObjectReader& entry) {
    AttentionCurve its;
    entry.require({"kernel", "head_dim", "source"});
    entry.text("kernel", its.kernel).integer("head_dim", its.head_dim, {1, 4096}).text("source", text);
    curve(entry, "log2_length", "forward", its.forward);
    profile.attention.push_back(its);
  });
  if (profile.attention.empty())
    from.problem("kernels", "must have one at least", "run scenarios/profiles/fit.py again");
}

template <class Profile>
Result<Profile> load(const std::string& file, void (*read)(ObjectReader&, Profile&)) {
  const Result<json> text = read_json_file(file);
  if (!text) return text.problems();
  Problems problems;
  Profile profile;
  ObjectReader from(text.value(), file, "$", problems);
  std::int64_t schema = 1;
  from.require({"schema", "name", "constants"});
  from.integer("schema", schema, {1, 1}).text("name", profile.name);
  read(from, profile);
  from.finish();
  if (!problems.empty()) return problems;
  return profile;
}

}  // namespace

Result<HardwareProfile> load_hardware_profile(const std::string& file) {
  return load<HardwareProfile>(file, [](ObjectReader& from, HardwareProfile& profile) {
    from.object("constants", [&](ObjectReader& constants) {
      read_node_constants(constants, profile);
      if (!from.has("op_rates")) read_gpu_constants(constants, profile);
    });
    from.require({"nvlink"});
    if (from.has("op_rates")) {
      from.objects("op_rates", [&](ObjectReader& entry) { profile.op_rates.push_back(read_rates(entry)); });
    } else {
      from.require({"attention"});
    }
    from.object("attention", [&](ObjectReader& attention) { read_attention(attention, profile); });
    from.object("nvlink", [&](ObjectReader& entry) { read_nvlink(entry, profile); });
    from.take("residuals");  // for readers: what fit.py measured
  });
}

Result<StackProfile> load_stack_profile(const std::string& file) {
  return load<StackProfile>(file, [](ObjectReader& from, StackProfile& profile) {
    from.object("constants", [&](ObjectReader& constants) {
      constant(constants, "sustained_clock", profile.sustained_clock, {0.1, 1});
      constant(constants, "attention_relative", profile.attention_relative, {0.1, 2});
      const auto if_known = [&](const char* key, double& out, NumberRange range) {
        if (constants.has(key)) constant(constants, key, out, range);
      };
      if_known("memory_traffic", profile.memory_traffic, {0.5, 10});
      if_known("overlap_slowdown", profile.overlap_slowdown, {0, 1});
      if_known("collectives_relative", profile.collectives_relative, {0.01, 2});
      if_known("nvlink_relative", profile.nvlink_relative, {0.01, 2});
      if_known("jitter", profile.jitter, {0, 0.2});
      constant(constants, "kernel_gap_s", profile.kernel_gap_s, {0, 1});
      constant(constants, "host_sync_s", profile.host_sync_s, {0, 1});
      constant(constants, "context_bytes", profile.context_bytes, {0, 1e12});
      constant(constants, "communicator_bytes", profile.communicator_bytes, {0, 1e12});
      if_known("gradient_copy_bytes", profile.gradient_copy_bytes, {0, 8});
      if_known("step_gradient_bytes", profile.step_gradient_bytes, {0, 8});
      if_known("logit_copy_bytes", profile.logit_copy_bytes, {0, 32});
      constant(constants, "allocator_reserve", profile.allocator_reserve, {0, 1});
    });
    from.object("attention", [&](ObjectReader& attention) {
      std::string text;
      attention.require({"kernel", "source", "date"});
      attention.text("kernel", profile.attention)
          .boolean("dropout", profile.attention_dropout)
          .text("source", text)
          .text("date", text);
    });
    from.texts("hardware", profile.hardware).texts("frameworks", profile.frameworks);
    // What fit_stacks.py left: by fitted run, what remains of its error.
    if (const json* residuals = from.take("residuals"); residuals != nullptr && residuals->is_object())
      for (const auto& [run, error] : residuals->items()) profile.fitted_on.push_back(run);
  });
}

}  // namespace trainyard
