#include "models/spec/spec_readers.h"

#include <algorithm>

#include <fmt/format.h>

namespace trainyard {

void read_model(ObjectReader& from, ModelSpec& model) {
  from.require({"name", "family", "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size",
                "vocab_size", "max_position_embeddings"});
  from.text("name", model.name)
      .choice<ModelFamily>("family", model.family,
                           {{"llama", ModelFamily::Llama},
                            {"mixtral", ModelFamily::Mixtral},
                            {"grok1", ModelFamily::Grok1},
                            {"gpt3", ModelFamily::Gpt3}})
      .integer("num_hidden_layers", model.num_hidden_layers, {1, 1024})
      .integer("hidden_size", model.hidden_size, {1, 1 << 20})
      .integer("num_attention_heads", model.num_attention_heads, {1, 1 << 16})
      .integer("intermediate_size", model.intermediate_size, {1, 1 << 24})
      .integer("vocab_size", model.vocab_size, {1, 1 << 26})
      .integer("max_position_embeddings", model.max_position_embeddings, {1, 1 << 28});
  // As Hugging Face has it: without key-value heads every query head has its own, and heads fill the hidden size.
  model.num_key_value_heads = model.num_attention_heads;
  from.integer("num_key_value_heads", model.num_key_value_heads, {1, 1 << 16});
  if (model.num_attention_heads > 0) model.head_dim = model.hidden_size / model.num_attention_heads;
  from.integer("head_dim", model.head_dim, {1, 1 << 16});
  from.choice<NormKind>("norm", model.norm, {{"rms_norm", NormKind::RmsNorm}, {"layer_norm", NormKind::LayerNorm}})
      .number("norm_eps", model.norm_eps, {1e-12, 1e-1})
      .choice<NormPlacement>("norm_placement", model.norm_placement,
                             {{"pre", NormPlacement::Pre}, {"sandwich", NormPlacement::Sandwich}})
      .choice<PositionKind>("position", model.position,
                            {{"rope", PositionKind::Rope},
                             {"learned", PositionKind::Learned},
                             {"alibi", PositionKind::Alibi},
                             {"none", PositionKind::None}})
      .number("rope_theta", model.rope_theta, {1, 1e12})
      .choice<ActivationKind>("hidden_act", model.hidden_act,
                              {{"silu", ActivationKind::Silu},
                               {"gelu", ActivationKind::Gelu},
                               {"gelu_tanh", ActivationKind::GeluTanh},
                               {"squared_relu", ActivationKind::SquaredRelu}})
      .boolean("gated_mlp", model.gated_mlp)
      .boolean("attention_bias", model.attention_bias)
      .boolean("mlp_bias", model.mlp_bias)
      .boolean("tie_word_embeddings", model.tie_word_embeddings)
      .number("embedding_multiplier", model.embedding_multiplier, {1e-6, 1e6})
      .number("output_multiplier", model.output_multiplier, {1e-6, 1e6})
      .optional_number("attention_multiplier", model.attention_multiplier, {1e-6, 1e6})
      .number("attention_softcap", model.attention_softcap, {0, 1e6})
      .number("output_softcap", model.output_softcap, {0, 1e6})
      .integer("sliding_window", model.sliding_window, {0, 1 << 28})
      .number("hidden_dropout", model.hidden_dropout, {0, 0.99})
      .number("initializer_range", model.initializer_range, {1e-9, 1e3})
      .object("mup",
              [&](ObjectReader& mup) {
                MupSpec& base = model.mup.emplace();
                mup.require({"base_hidden_size"});
                mup.integer("base_hidden_size", base.base_hidden_size, {1, 1 << 24})
                    .integer("base_intermediate_size", base.base_intermediate_size, {1, 1 << 26})
                    .integer("base_num_attention_heads", base.base_num_attention_heads, {1, 1 << 16})
                    .integer("base_head_dim", base.base_head_dim, {1, 1 << 16})
                    .boolean("zero_readout", base.zero_readout);
              })
      .object("moe", [&](ObjectReader& moe) {
        model.moe.emplace();
        moe.require({"num_local_experts", "num_experts_per_tok"});
        moe.integer("num_local_experts", model.moe->num_local_experts, {2, 1 << 16})
            .integer("num_experts_per_tok", model.moe->num_experts_per_tok, {1, 1 << 16})
            .boolean("renormalize", model.moe->renormalize);
      });
}

namespace {

void read_rdma(ObjectReader& from, RdmaSpec& rdma) {
  double rtt_us = rdma.rtt_s * 1e6;
  from.number("rtt_us", rtt_us, {0.1, 1e6})
      .integer("packet_bytes", rdma.packet_bytes, {256, 65536})
      .choice<Retransmission>(
          "retransmission", rdma.retransmission,
          {{"go_back_n", Retransmission::GoBackN}, {"selective_repeat", Retransmission::SelectiveRepeat}})
      .boolean("adaptive_retransmission", rdma.adaptive_retransmission)
      .choice<CongestionControl>("congestion_control", rdma.congestion_control,
                                 {{"none", CongestionControl::None}, {"dcqcn", CongestionControl::Dcqcn}})
      .number("pfc_watchdog_s", rdma.pfc_watchdog_s, {0, 1e6});
  rdma.rtt_s = rtt_us * 1e-6;
}

}  // namespace

void read_cluster(ObjectReader& from, ClusterSpec& cluster) {
  from.require({"name", "hardware", "nodes", "nic_bytes_per_s"});
  from.text("name", cluster.name)
      .text("hardware", cluster.hardware)
      .integer("nodes", cluster.nodes, {1, 10'000'000})
      .integer("gpus_per_node", cluster.gpus_per_node, {1, 1024})
      .integer("nics_per_node", cluster.nics_per_node, {1, 1024})
      .number("nic_bytes_per_s", cluster.nic_bytes_per_s, {1, 1e15})
      .boolean("rail_optimized", cluster.rail_optimized)
      .choice<Routing>("routing", cluster.routing, {{"adaptive", Routing::Adaptive}, {"ecmp", Routing::Ecmp}})
      .integer("flows_per_channel", cluster.flows_per_channel, {1, 256})
      .integer("ecmp_seed", cluster.ecmp_seed)
      .objects("tiers",
               [&](ObjectReader& entry) {
                 FabricTier tier;
                 entry.require({"name", "nodes_per_group"});
                 entry.text("name", tier.name)
                     .integer("nodes_per_group", tier.nodes_per_group, {1, 10'000'000})
                     .number("oversubscription", tier.oversubscription, {1, 1000})
                     .integer("uplinks", tier.uplinks, {0, 1'000'000});
                 cluster.tiers.push_back(tier);
               })
      .boolean("dual_tor", cluster.dual_tor)
      .object("rdma", [&](ObjectReader& rdma) { read_rdma(rdma, cluster.rdma); })
      .object("storage", [&](ObjectReader& storage) {
        storage.number("remote_write_bytes_per_s", cluster.storage.remote_write_bytes_per_s, {0, 1e18})
            .number("remote_read_bytes_per_s", cluster.storage.remote_read_bytes_per_s, {0, 1e18})
            .number("nvme_write_bytes_per_s", cluster.storage.nvme_write_bytes_per_s, {0, 1e18})
            .number("nvme_read_bytes_per_s", cluster.storage.nvme_read_bytes_per_s, {0, 1e18});
      });
}

namespace {

void read_checkpoints(ObjectReader& from, CheckpointPolicy& checkpoints) {
  from.choice<CheckpointCadence>("cadence", checkpoints.cadence,
                                 {{"fixed", CheckpointCadence::Fixed},
                                  {"young_daly", CheckpointCadence::YoungDaly},
                                  {"adaptive", CheckpointCadence::Adaptive}})
      .choice<CheckpointTier>("usual_tier", checkpoints.usual_tier,
                              {{"host", CheckpointTier::Host},
                               {"peer", CheckpointTier::Peer},
                               {"nvme", CheckpointTier::Nvme},
                               {"remote", CheckpointTier::Remote}})
      .integer("permanent_every", checkpoints.permanent_every, {1, 1'000'000})
      .number("drain_share", checkpoints.drain_share, {1e-6, 0.95})
      .boolean("hash_vote", checkpoints.hash_vote);
}

// As NCCL has them, or the seconds that they come to.
void read_queue_pairs(ObjectReader& from, DetectionLadder& ladder) {
  std::int64_t timeout = 20;
  from.integer("ib_timeout", timeout, {1, 31}).integer("ib_retry_cnt", ladder.ib_retry_cnt, {1, 7});
  if (!from.has("ib_timeout") && !from.has("ib_retry_cnt")) return;
  if (from.has("link_s"))
    from.problem("link_s", "follows from ib_timeout and ib_retry_cnt: 4.096 us * 2^ib_timeout * ib_retry_cnt",
                 "keep one form, that of the base where there is one");
  ladder.link_s = queue_pair_timeout_s(timeout, ladder.ib_retry_cnt);
}

void read_policy_parts(ObjectReader& from, PolicySpec& policy) {
  const NumberRange seconds{0, 1e9};
  const IntegerRange count{0, 10'000'000};
  from.object("timeouts",
              [&](ObjectReader& its) {
                read_queue_pairs(its, policy.timeouts);
                its.number("link_s", policy.timeouts.link_s, seconds)
                    .number("collective_s", policy.timeouts.collective_s, seconds)
                    .number("process_group_s", policy.timeouts.process_group_s, seconds)
                    .number("training_s", policy.timeouts.training_s, seconds)
                    .number("rendezvous_s", policy.timeouts.rendezvous_s, seconds);
              })
      .object("checkpoints", [&](ObjectReader& its) { read_checkpoints(its, policy.checkpoints); })
      .object("spares",
              [&](ObjectReader& its) {
                its.integer("hot", policy.spares.hot, count)
                    .integer("cold", policy.spares.cold, count)
                    .choice<SparePlacement>(
                        "placement", policy.spares.placement,
                        {{"together", SparePlacement::Together}, {"per_leaf", SparePlacement::PerLeaf}})
                    .number("warm_extra_s", policy.spares.warm_extra_s, seconds)
                    .number("cold_extra_s", policy.spares.cold_extra_s, seconds);
              })
      .object("elastic",
              [&](ObjectReader& its) {
                policy.elastic.enabled = true;
                its.integer("min_replicas", policy.elastic.min_replicas, {1, 10'000'000})
                    .number("regrow_patience_s", policy.elastic.regrow_patience_s, seconds);
              })
      .object("stragglers",
              [&](ObjectReader& its) {
                its.number("replace_at_slowdown", policy.stragglers.replace_at_slowdown, {0, 1e6})
                    .number("patience_s", policy.stragglers.patience_s, seconds);
              })
      .object("readmission", [&](ObjectReader& its) {
        its.number("test_s", policy.readmission.test_s, seconds)
            .number("thorough_test_s", policy.readmission.thorough_test_s, seconds)
            .integer("lemon_ejections", policy.readmission.lemon_ejections, count)
            .integer("retire_ejections", policy.readmission.retire_ejections, count)
            .number("window_days", policy.readmission.window_days, {1e-3, 1e4});
      });
}

}  // namespace

void read_policy(ObjectReader& from, PolicySpec& policy) {
  const NumberRange seconds{0, 1e9};
  from.require({"name"});
  read_policy_parts(from, policy);
  from.text("name", policy.name)
      .number("detection_timeout_s", policy.detection_timeout_s, seconds)
      .number("diagnosis_s", policy.diagnosis_s, seconds)
      .number("checkpoint_interval_s", policy.checkpoint_interval_s, seconds)
      .number("checkpoint_stall_s", policy.checkpoint_stall_s, seconds)
      .integer("spare_nodes", policy.spare_nodes, {0, 10'000'000})
      .integer("max_ejections_per_domain_per_hour", policy.max_ejections_per_domain_per_hour, {1, 1'000'000})
      .number("fence_s", policy.fence_s, seconds)
      .number("allocate_s", policy.allocate_s, seconds)
      .number("process_start_s", policy.process_start_s, seconds)
      .number("communicators_s", policy.communicators_s, seconds)
      .number("load_state_s", policy.load_state_s, seconds)
      .number("first_step_s", policy.first_step_s, seconds)
      .number("maintenance_lead_s", policy.maintenance_lead_s, seconds)
      .integer("exits_before_blame", policy.exits_before_blame, {1, 1'000'000})
      .boolean("in_process_restart", policy.in_process_restart)
      .choice<Evidence>("evidence", policy.evidence, {{"timeouts", Evidence::Timeouts}, {"all", Evidence::All}})
      .number("repair_median_s", policy.repair_median_s, seconds)
      .number("repair_sigma", policy.repair_sigma, {0, 10});
}

namespace {

void read_recompute_modules(ObjectReader& from, ParallelPlan& plan) {
  const nlohmann::json* modules = from.take("recompute_modules");
  if (modules == nullptr) return;
  RecomputeModules& its = plan.recompute_modules;
  const std::vector<std::pair<std::string, bool*>> known{
      {"core_attn", &its.core_attn}, {"norm", &its.norm}, {"activation", &its.activation},
      {"pointwise", &its.pointwise}, {"mlp", &its.mlp},   {"every_second_matmul", &its.every_second_matmul}};
  for (const auto& [name, flag] : known) *flag = false;
  const bool good =
      modules->is_array() && std::all_of(modules->begin(), modules->end(), [&](const nlohmann::json& module) {
        const auto found =
            std::find_if(known.begin(), known.end(), [&](const auto& entry) { return module == entry.first; });
        if (found != known.end()) *found->second = true;
        return found != known.end();
      });
  if (!good)
    from.problem("recompute_modules",
                 "must be a list of core_attn, norm, activation, pointwise, mlp, every_second_matmul",
                 "write [\"core_attn\"]");
  if (plan.recompute != RecomputeMode::Selective)
    from.problem("recompute_modules", "means something only for selective recompute",
                 "remove it, or set \"recompute\": \"selective\"");
}

}  // namespace

void read_plan(ObjectReader& from, ParallelPlan& plan) {
  const IntegerRange degree{1, 10'000'000};
  from.require({"sequence_length", "global_batch_size"});
  from.text("name", plan.name)
      .integer("tp", plan.tp, degree)
      .integer("cp", plan.cp, degree)
      .integer("ep", plan.ep, degree)
      .integer("pp", plan.pp, {1, 4096})
      .integer("dp", plan.dp, degree)
      .choice<std::string>("order", plan.order,
                           {{"tp-cp-ep-dp-pp", "tp-cp-ep-dp-pp"}, {"tp-cp-ep-pp-dp", "tp-cp-ep-pp-dp"}})
      .boolean("sequence_parallel", plan.sequence_parallel)
      .choice<CpCommType>("cp_comm_type", plan.cp_comm_type,
                          {{"all_gather", CpCommType::AllGather}, {"p2p", CpCommType::P2p}})
      .integer("zero_stage", plan.zero_stage, {0, 3})
      .integer("zero_shard_size", plan.zero_shard_size, {0, 10'000'000})
      .choice<std::optional<GradSync>>(
          "grad_sync", plan.grad_sync,
          {{"last_micro_batch", GradSync::LastMicroBatch}, {"every_micro_batch", GradSync::EveryMicroBatch}})
      .choice<PipelineSchedule>("schedule", plan.schedule,
                                {{"1f1b", PipelineSchedule::OneFOneB}, {"interleaved", PipelineSchedule::Interleaved}})
      .integer("virtual_stages", plan.virtual_stages, {1, 4096})
      .boolean("pipeline_scatter_gather", plan.pipeline_scatter_gather)
      .integers("layers_per_chunk", plan.layers_per_chunk, {0, 10000})
      .integer("sequence_length", plan.sequence_length, {1, 1 << 28})
      .integer("micro_batch_size", plan.micro_batch, {1, 1 << 20})
      .integer("global_batch_size", plan.global_batch, {1, 1 << 30})
      .choice<RecomputeMode>(
          "recompute", plan.recompute,
          {{"none", RecomputeMode::None}, {"selective", RecomputeMode::Selective}, {"full", RecomputeMode::Full}})
      .boolean("recompute_early_stop", plan.recompute_early_stop)
      .integer("recompute_layers", plan.recompute_layers, {0, 10000})
      .choice<Precision>("precision", plan.precision,
                         {{"bf16", Precision::Bf16}, {"f32", Precision::F32}, {"f64", Precision::F64}})
      .boolean("fp32_gradients", plan.fp32_gradients)
      .integer("cpu_threads", plan.cpu_threads, {1, 1024})
      .integer("bucket_bytes", plan.bucket_bytes, {1, std::int64_t{1} << 40})
      .object("overlap",
              [&](ObjectReader& overlap) {
                overlap.boolean("grad_reduce", plan.overlap.grad_reduce)
                    .boolean("param_gather", plan.overlap.param_gather)
                    .boolean("p2p", plan.overlap.p2p)
                    .boolean("tensor_parallel", plan.overlap.tensor_parallel);
              })
      .object("moe",
              [&](ObjectReader& moe) {
                moe.optional_number("buffer_factor", plan.moe.buffer_factor, {1, 1e6})
                    .choice<MoeOverflow>("overflow", plan.moe.overflow,
                                         {{"fail", MoeOverflow::Fail}, {"drop", MoeOverflow::Drop}});
              })
      .object("optimizer", [&](ObjectReader& adam) {
        adam.number("learning_rate", plan.optimizer.learning_rate, {0, 1e3})
            .number("beta1", plan.optimizer.beta1, {0, 0.999999})
            .number("beta2", plan.optimizer.beta2, {0, 0.999999})
            .number("eps", plan.optimizer.eps, {0, 1})
            .number("weight_decay", plan.optimizer.weight_decay, {0, 1e3})
            .number("clip_grad", plan.optimizer.clip_grad, {0, 1e9})
            .integer("warmup_steps", plan.optimizer.warmup_steps)
            .integer("decay_steps", plan.optimizer.decay_steps)
            .number("min_learning_rate", plan.optimizer.min_learning_rate, {0, 1e3});
      });
  read_recompute_modules(from, plan);
  if (plan.recompute_layers > 0 && plan.recompute == RecomputeMode::None)
    from.problem("recompute_layers", "means something only where something is recomputed",
                 "remove it, or set \"recompute\"");
}

void read_training(ObjectReader& from, TrainingSpec& training) {
  from.require({"data", "steps"});
  from.text("data", training.data)
      .integer("steps", training.steps, {1, std::int64_t{1} << 40})
      .object("checkpoint", [&](ObjectReader& checkpoint) {
        checkpoint.require({"folder"});
        checkpoint.text("folder", training.checkpoint.folder)
            .integer("every_steps", training.checkpoint.every_steps)
            .integer("keep", training.checkpoint.keep, {1, 1'000'000});
      });
}

void read_validation(ObjectReader& from, ValidationSpec& validation) {
  from.texts("scenarios", validation.scenarios)
      .integer("seeds", validation.seeds, {1, 100'000})
      .optional_number("max_step_time_s", validation.max_step_time_s, {1e-9, 1e9})
      .optional_number("min_effective_training_time", validation.min_effective_training_time, {0, 1})
      .optional_number("max_recovery_s", validation.max_recovery_s, {0, 1e9});
}

}  // namespace trainyard
