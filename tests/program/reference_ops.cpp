#include "tests/program/reference_ops.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "models/base/random.h"
#include "models/program/layout.h"

namespace trainyard {

namespace {

using Int = std::int64_t;

double softcap(double x, double cap) { return cap > 0 ? cap * std::tanh(x / cap) : x; }
double softcap_slope(double x, double cap) {
  if (cap <= 0) return 1;
  const double t = std::tanh(x / cap);
  return 1 - t * t;
}

double activate(ActivationKind kind, double x) {
  switch (kind) {
    case ActivationKind::Silu: return x / (1 + std::exp(-x));
    case ActivationKind::Gelu: return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case ActivationKind::GeluTanh: return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case ActivationKind::SquaredRelu: return x > 0 ? x * x : 0;
  }
  throw std::logic_error("unknown activation");
}

double activate_slope(ActivationKind kind, double x) {
  switch (kind) {
    case ActivationKind::Silu: {
      const double s = 1 / (1 + std::exp(-x));
      return s * (1 + x * (1 - s));
    }
    case ActivationKind::Gelu:
      return 0.5 * (1 + std::erf(x / std::sqrt(2.0))) + x * std::exp(-0.5 * x * x) / std::sqrt(2 * M_PI);
    case ActivationKind::GeluTanh: {
      const double c = std::sqrt(2 / M_PI), t = std::tanh(c * (x + 0.044715 * x * x * x));
      return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x);
    }
    case ActivationKind::SquaredRelu: return x > 0 ? 2 * x : 0;
  }
  throw std::logic_error("unknown activation");
}

// An index or a count that an op reads from memory. Poison (-1) and garbage must not reach an address.
Int index_below(Int value, Int bound) {
  if (value < 0 || value >= bound) throw std::runtime_error("an index in memory is out of range");
  return value;
}

// Counts [S, C, El] of rows, at most `bound` in all.
void require_counts(const View& counts, Int bound) {
  Int total = 0;
  for (Int i = 0; i < counts.size(); ++i) total += index_below(counts.i()[i], bound + 1);
  index_below(total, bound + 1);
}

// One op with everything it may look at.
class Computation {
 public:
  Computation(const Op& op, const OpContext& context, const std::vector<View>& in, const std::vector<View>& out)
      : op_(op), a_(op.attr), in_(in), out_(out), context_(context), plan_(context.program->plan), mesh_(plan_) {}

  void run() {
    switch (op_.kind) {
      case OpKind::Embedding: return embedding();
      case OpKind::EmbeddingGrad: return embedding_grad();
      case OpKind::PositionAdd: return position_add();
      case OpKind::PositionGrad: return position_grad();
      case OpKind::Norm: return norm();
      case OpKind::NormGrad: return norm_grad();
      case OpKind::Matmul: return matmul();
      case OpKind::BiasAdd: return bias_add();
      case OpKind::BiasGrad: return bias_grad();
      case OpKind::Activation: return activation();
      case OpKind::ActivationGrad: return activation_grad();
      case OpKind::Add: return add();
      case OpKind::Dropout: return dropout();
      case OpKind::SplitQkv: return split_qkv();
      case OpKind::MergeQkvGrad: return merge_qkv_grad();
      case OpKind::Attention: return attention();
      case OpKind::AttentionMerge: return attention_merge();
      case OpKind::AttentionGrad: return attention_grad();
      case OpKind::Router: return router();
      case OpKind::RouterGrad: return router_grad();
      case OpKind::Permute: return permute();
      case OpKind::PermuteGrad: return permute_grad();
      case OpKind::Unpermute: return unpermute();
      case OpKind::UnpermuteGrad: return unpermute_grad();
      case OpKind::SortByExpert: return sort_by_expert();
      case OpKind::GroupedMatmul: return grouped_matmul();
      case OpKind::GroupedMatmulWgrad: return grouped_wgrad();
      case OpKind::XentMax: return xent_max();
      case OpKind::XentSum: return xent_sum();
      case OpKind::XentLoss: return xent_loss();
      case OpKind::XentGrad: return xent_grad();
      case OpKind::AllReduce:
      case OpKind::AllGather:
      case OpKind::ReduceScatter:
      case OpKind::AllToAllCounts:
      case OpKind::AllToAllV:
      case OpKind::RingShift:
      case OpKind::SendRecv: throw std::logic_error("communication is not one rank's");
      case OpKind::Zero: std::fill_n(out_[0].f(), out_[0].size(), 0.0); return;
      case OpKind::Copy: return copy();
      case OpKind::Accumulate:
        for (Int i = 0; i < in_[0].size(); ++i) out_[0].f()[i] += in_[0].f()[i];
        return;
      case OpKind::SquaredNorm: return squared_norm();
      case OpKind::AdamW: return adamw();
      case OpKind::HostSync:
      case OpKind::Join: return;
    }
    throw std::logic_error("unknown op");
  }

 private:
  Int tp_index() const { return mesh_.coordinates(context_.rank).tp; }
  Int cp_index() const { return mesh_.coordinates(context_.rank).cp; }

  // Row `t` of an operand that may be this tp rank's block of all rows.
  Int global_row(Int t, Int rows, Int all_rows) const { return rows == all_rows ? t : tp_index() * rows + t; }

  // --- embedding and positions

  void embedding() {
    const Int rows = out_[0].dim(0), d = out_[0].dim(1), local = in_[1].dim(0), first = tp_index() * local;
    for (Int t = 0; t < rows; ++t) {
      const Int token = in_[0].i()[t] - first;
      for (Int c = 0; c < d; ++c)
        out_[0].f()[t * d + c] = token >= 0 && token < local ? a_.scale * in_[1].f()[token * d + c] : 0.0;
    }
  }

  void embedding_grad() {
    const Int rows = in_[1].dim(0), d = in_[1].dim(1), local = out_[0].dim(0), first = tp_index() * local;
    for (Int t = 0; t < rows; ++t) {
      const Int token = in_[0].i()[t] - first;
      if (token < 0 || token >= local) continue;
      for (Int c = 0; c < d; ++c) out_[0].f()[token * d + c] += a_.scale * in_[1].f()[t * d + c];
    }
  }

  void position_add() {
    const Int rows = in_[0].dim(0), d = in_[0].dim(1);
    for (Int t = 0; t < rows; ++t) {
      const Int position = index_below(in_[1].i()[global_row(t, rows, in_[1].size())], in_[2].dim(0));
      for (Int c = 0; c < d; ++c) out_[0].f()[t * d + c] = in_[0].f()[t * d + c] + in_[2].f()[position * d + c];
    }
  }

  void position_grad() {
    const Int rows = in_[1].dim(0), d = in_[1].dim(1);
    for (Int t = 0; t < rows; ++t) {
      const Int position = index_below(in_[0].i()[global_row(t, rows, in_[0].size())], out_[0].dim(0));
      for (Int c = 0; c < d; ++c) out_[0].f()[position * d + c] += in_[1].f()[t * d + c];
    }
  }

  // --- dense math

  void norm() {
    const Int rows = in_[0].dim(0), d = in_[0].dim(1);
    const bool centred = a_.norm == NormKind::LayerNorm;
    for (Int t = 0; t < rows; ++t) {
      const double* x = in_[0].f() + t * d;
      double mean = 0, square = 0;
      for (Int c = 0; c < d && centred; ++c) mean += x[c] / static_cast<double>(d);
      for (Int c = 0; c < d; ++c) square += (x[c] - mean) * (x[c] - mean) / static_cast<double>(d);
      const double rstd = 1 / std::sqrt(square + a_.eps);
      out_[1].f()[t] = rstd;
      if (centred) out_[2].f()[t] = mean;
      for (Int c = 0; c < d; ++c) {
        out_[0].f()[t * d + c] = (x[c] - mean) * rstd * in_[1].f()[c] + (centred ? in_[2].f()[c] : 0.0);
      }
    }
  }

  void norm_grad() {
    const Int rows = in_[0].dim(0), d = in_[0].dim(1);
    const bool centred = a_.norm == NormKind::LayerNorm;
    for (Int t = 0; t < rows; ++t) {
      const double *dy = in_[0].f() + t * d, *x = in_[1].f() + t * d, *w = in_[2].f();
      const double rstd = in_[3].f()[t], mean = centred ? in_[4].f()[t] : 0;
      double dot = 0, sum = 0;  // means of g * xhat and of g, with g = dy * w
      for (Int c = 0; c < d; ++c) {
        const double xhat = (x[c] - mean) * rstd;
        dot += dy[c] * w[c] * xhat / static_cast<double>(d);
        sum += dy[c] * w[c] / static_cast<double>(d);
        out_[1].f()[c] += dy[c] * xhat;
        if (centred) out_[2].f()[c] += dy[c];
      }
      for (Int c = 0; c < d; ++c) {
        const double xhat = (x[c] - mean) * rstd;
        out_[0].f()[t * d + c] = rstd * (dy[c] * w[c] - xhat * dot - (centred ? sum : 0.0));
      }
    }
  }

  void matmul() {
    const double *a = in_[0].f(), *b = in_[1].f();
    for (Int i = 0; i < a_.m; ++i) {
      for (Int j = 0; j < a_.n; ++j) {
        double sum = 0;
        for (Int l = 0; l < a_.k; ++l)
          sum += (a_.trans_a ? a[l * a_.m + i] : a[i * a_.k + l]) * (a_.trans_b ? b[j * a_.k + l] : b[l * a_.n + j]);
        double& c = out_[0].f()[i * a_.n + j];
        c = (a_.accumulate ? c : 0.0) + a_.alpha * sum + (a_.has_bias ? in_[2].f()[j] : 0.0);
      }
    }
  }

  void bias_add() {
    const Int n = in_[1].size();
    for (Int i = 0; i < in_[0].size(); ++i) out_[0].f()[i] = in_[0].f()[i] + in_[1].f()[i % n];
  }

  void bias_grad() {
    const Int n = out_[0].size();
    for (Int i = 0; i < in_[0].size(); ++i) out_[0].f()[i % n] += in_[0].f()[i];
  }

  // Rows of an expert buffer that hold data, or all rows.
  Int valid_rows(const View& rows, const View* counts) const {
    if (counts == nullptr) return rows.dim(0);
    require_counts(*counts, rows.dim(0));
    Int total = 0;
    for (Int i = 0; i < counts->size(); ++i) total += counts->i()[i];
    return total;
  }

  void activation() {
    const Int f = out_[0].dim(1), rows = valid_rows(out_[0], a_.has_counts ? &in_[1] : nullptr);
    for (Int t = 0; t < rows; ++t) {
      for (Int c = 0; c < f; ++c) {
        const double* h = in_[0].f() + t * f * (a_.gated ? 2 : 1);
        out_[0].f()[t * f + c] = activate(a_.activation, h[c]) * (a_.gated ? h[f + c] : 1.0);
      }
    }
  }

  void activation_grad() {
    const Int f = in_[0].dim(1), rows = valid_rows(in_[0], a_.has_counts ? &in_[2] : nullptr);
    for (Int t = 0; t < rows; ++t) {
      for (Int c = 0; c < f; ++c) {
        const double da = in_[0].f()[t * f + c];
        const double* h = in_[1].f() + t * f * (a_.gated ? 2 : 1);
        double* dh = out_[0].f() + t * f * (a_.gated ? 2 : 1);
        dh[c] = da * activate_slope(a_.activation, h[c]) * (a_.gated ? h[f + c] : 1.0);
        if (a_.gated) dh[f + c] = da * activate(a_.activation, h[c]);
      }
    }
  }

  void add() {
    for (Int i = 0; i < out_[0].size(); ++i) out_[0].f()[i] = in_[0].f()[i] + in_[1].f()[i];
  }

  void dropout() {
    const Int rows = in_[0].dim(0), d = in_[0].dim(1);
    const Int layer = a_.layer < 0 ? -1 : context_.chunk->first_layer + a_.layer;
    for (Int t = 0; t < rows; ++t) {
      const Int row = global_row(t, rows, in_[1].size());
      for (Int c = 0; c < d; ++c) {
        std::uint64_t key = mix64(mix64(0) ^ static_cast<std::uint64_t>(context_.step));  // seed 0
        for (const Int part : {layer, static_cast<Int>(a_.salt), static_cast<Int>(in_[1].i()[row]),
                               static_cast<Int>(in_[2].i()[row]), c}) {
          key = mix64(key ^ static_cast<std::uint64_t>(part));
        }
        const bool keep = static_cast<double>(key >> 11) * 0x1.0p-53 >= a_.probability;
        out_[0].f()[t * d + c] = keep ? in_[0].f()[t * d + c] / (1 - a_.probability) : 0.0;
      }
    }
  }

  // --- attention

  // Rotates one head in place: forward for sign = 1, its transpose for sign = -1.
  void rotate(double* head, Int position, double sign) const {
    const Int half = a_.head_dim / 2;
    for (Int j = 0; j < half; ++j) {
      const double angle = static_cast<double>(position) *
                           std::pow(a_.rope_theta, -2.0 * static_cast<double>(j) / static_cast<double>(a_.head_dim));
      const double cos = std::cos(angle), sin = sign * std::sin(angle), x = head[j], y = head[half + j];
      head[j] = x * cos - y * sin;
      head[half + j] = y * cos + x * sin;
    }
  }

  void split_qkv() {
    const Int rows = in_[0].dim(0), q = a_.heads * a_.head_dim, kv = a_.kv_heads * a_.head_dim;
    for (Int t = 0; t < rows; ++t) {
      const double* from = in_[0].f() + t * (q + 2 * kv);
      std::copy_n(from, q, out_[0].f() + t * q);
      std::copy_n(from + q, kv, out_[1].f() + t * kv);
      std::copy_n(from + q + kv, kv, out_[2].f() + t * kv);
      if (!a_.rope) continue;
      for (Int h = 0; h < a_.heads; ++h) rotate(out_[0].f() + t * q + h * a_.head_dim, in_[1].i()[t], 1);
      for (Int h = 0; h < a_.kv_heads; ++h) rotate(out_[1].f() + t * kv + h * a_.head_dim, in_[1].i()[t], 1);
    }
  }

  void merge_qkv_grad() {
    const Int rows = out_[0].dim(0), q = a_.heads * a_.head_dim, kv = a_.kv_heads * a_.head_dim;
    for (Int t = 0; t < rows; ++t) {
      double* to = out_[0].f() + t * (q + 2 * kv);
      std::copy_n(in_[0].f() + t * q, q, to);
      std::copy_n(in_[1].f() + t * kv, kv, to + q);
      std::copy_n(in_[2].f() + t * kv, kv, to + q + kv);
      if (!a_.rope) continue;
      for (Int h = 0; h < a_.heads; ++h) rotate(to + h * a_.head_dim, in_[3].i()[t], -1);
      for (Int h = 0; h < a_.kv_heads; ++h) rotate(to + q + h * a_.head_dim, in_[3].i()[t], -1);
    }
  }

  struct Key {
    Int row, distance;
  };
  // Visits every query row and the keys that it may attend to.
  template <class Visit>
  void for_each_query(Int rows, Visit visit) const {
    const Int local = rows / a_.batch, length = local * a_.cp;
    std::vector<Key> keys;
    for (Int i = 0; i < a_.batch; ++i) {
      for (Int t = 0; t < local; ++t) {
        const Int position = context_position(a_.cp, cp_index(), length, t);
        keys.clear();
        for (Int block = 0; block < a_.cp; ++block) {
          if (a_.hop >= 0 && block != (cp_index() - a_.hop + a_.cp) % a_.cp) continue;
          for (Int u = 0; u < local; ++u) {
            const Int key = context_position(a_.cp, block, length, u);
            if (key <= position && (a_.window == 0 || position - key < a_.window))
              keys.push_back({(a_.hop < 0 ? block * rows : 0) + i * local + u, position - key});
          }
        }
        visit(i * local + t, keys);
      }
    }
  }

  // ALiBi's slopes as its authors write them down: a geometric sequence, and for what is over every other one of a
  // finer.
  double slope(Int head) const {
    Int power = 1;
    while (power * 2 <= a_.alibi_heads) power *= 2;
    const double ratio = std::pow(2.0, -8.0 / static_cast<double>(power));
    if (head < power) return std::pow(ratio, static_cast<double>(head + 1));
    return std::pow(std::sqrt(ratio), static_cast<double>(2 * (head - power) + 1));
  }
  double score(double raw, Int head, Int distance) const {
    const double bias = a_.alibi_heads > 0 ? slope(tp_index() * a_.heads + head) * static_cast<double>(distance) : 0;
    return softcap(raw, a_.softcap) - bias;
  }

  double dot(const double* x, const double* y) const {
    double sum = 0;
    for (Int c = 0; c < a_.head_dim; ++c) sum += x[c] * y[c];
    return sum;
  }

  void attention() {
    const Int rows = in_[0].dim(0), dh = a_.head_dim, q = a_.heads * dh, kv = a_.kv_heads * dh;
    for_each_query(rows, [&](Int row, const std::vector<Key>& keys) {
      for (Int h = 0; h < a_.heads; ++h) {
        const Int g = h / (a_.heads / a_.kv_heads);
        std::vector<double> scores;
        double max = -std::numeric_limits<double>::infinity(), sum = 0;
        for (const Key& key : keys) {
          const double raw = a_.scale * dot(in_[0].f() + row * q + h * dh, in_[1].f() + key.row * kv + g * dh);
          scores.push_back(score(raw, h, key.distance));
          max = std::max(max, scores.back());
        }
        for (double& score : scores) sum += score = std::exp(score - max);
        double* o = out_[0].f() + row * q + h * dh;
        std::fill_n(o, dh, 0.0);
        for (std::size_t k = 0; k < keys.size(); ++k) {
          for (Int c = 0; c < dh; ++c) o[c] += scores[k] / sum * in_[2].f()[keys[k].row * kv + g * dh + c];
        }
        out_[1].f()[row * a_.heads + h] = keys.empty() ? max : max + std::log(sum);
      }
    });
  }

  void attention_merge() {
    const Int dh = a_.head_dim;
    for (Int at = 0; at < out_[1].size(); ++at) {  // a row's head
      double max = -std::numeric_limits<double>::infinity(), sum = 0;
      for (std::size_t p = 1; p < in_.size(); p += 2) max = std::max(max, in_[p].f()[at]);
      for (std::size_t p = 1; p < in_.size(); p += 2) sum += std::exp(in_[p].f()[at] - max);
      out_[1].f()[at] = max + std::log(sum);
      for (Int c = 0; c < dh; ++c) {
        double& o = out_[0].f()[at * dh + c] = 0;
        for (std::size_t p = 0; p < in_.size(); p += 2)
          o += std::exp(in_[p + 1].f()[at] - out_[1].f()[at]) * in_[p].f()[at * dh + c];
      }
    }
  }

  void attention_grad() {
    const Int rows = in_[1].dim(0), dh = a_.head_dim, q = a_.heads * dh, kv = a_.kv_heads * dh;
    for (const View& view : out_) std::fill_n(view.f(), view.size(), 0.0);
    for_each_query(rows, [&](Int row, const std::vector<Key>& keys) {
      for (Int h = 0; h < a_.heads; ++h) {
        const Int g = h / (a_.heads / a_.kv_heads);
        const double *dout = in_[0].f() + row * q + h * dh, *query = in_[1].f() + row * q + h * dh;
        const double delta = dot(dout, in_[4].f() + row * q + h * dh), lse = in_[5].f()[row * a_.heads + h];
        for (const Key& key : keys) {
          const double *k = in_[2].f() + key.row * kv + g * dh, *v = in_[3].f() + key.row * kv + g * dh;
          const double raw = a_.scale * dot(query, k);
          const double p = std::exp(score(raw, h, key.distance) - lse);
          const double ds = p * (dot(dout, v) - delta) * softcap_slope(raw, a_.softcap) * a_.scale;
          for (Int c = 0; c < dh; ++c) {
            out_[0].f()[row * q + h * dh + c] += ds * k[c];
            out_[1].f()[key.row * kv + g * dh + c] += ds * query[c];
            out_[2].f()[key.row * kv + g * dh + c] += p * dout[c];
          }
        }
      }
    });
  }

  // --- mixture of experts

  void router() {
    const Int rows = in_[0].dim(0), e = in_[0].dim(1), k = a_.top_k;
    for (Int t = 0; t < rows; ++t) {
      const double* logits = in_[0].f() + t * e;
      double* softmax = out_[2].f() + t * e;
      const double max = *std::max_element(logits, logits + e);
      double sum = 0;
      for (Int x = 0; x < e; ++x) sum += softmax[x] = std::exp(logits[x] - max);
      std::vector<Int> order;
      for (Int x = 0; x < e; ++x) {
        softmax[x] /= sum;
        order.push_back(x);
      }
      std::stable_sort(order.begin(), order.end(), [&](Int x, Int y) { return softmax[x] > softmax[y]; });
      double chosen = 0;
      for (Int j = 0; j < k; ++j) chosen += softmax[order[static_cast<std::size_t>(j)]];
      for (Int j = 0; j < k; ++j) {
        const Int x = order[static_cast<std::size_t>(j)];
        out_[1].i()[t * k + j] = static_cast<std::int32_t>(x);
        out_[0].f()[t * k + j] = softmax[x] / (a_.renormalize ? chosen : 1.0);
      }
    }
  }

  void router_grad() {
    const Int rows = in_[0].dim(0), k = a_.top_k, e = out_[0].dim(1);
    for (Int t = 0; t < rows; ++t) {
      const double *dprobs = in_[0].f() + t * k, *softmax = in_[2].f() + t * e;
      const std::int32_t* chosen = in_[1].i() + t * k;
      for (Int j = 0; j < k; ++j) index_below(chosen[j], e);
      double total = 0, weighted = 0;
      for (Int j = 0; j < k; ++j) {
        total += softmax[chosen[j]];
        weighted += dprobs[j] * softmax[chosen[j]];
      }
      std::vector<double> ds(static_cast<std::size_t>(e), 0.0);  // gradient of the softmax
      for (Int j = 0; j < k; ++j) {
        ds[static_cast<std::size_t>(chosen[j])] =
            a_.renormalize ? dprobs[j] / total - weighted / (total * total) : dprobs[j];
      }
      double mean = 0;
      for (Int x = 0; x < e; ++x) mean += ds[static_cast<std::size_t>(x)] * softmax[x];
      for (Int x = 0; x < e; ++x) out_[0].f()[t * e + x] = softmax[x] * (ds[static_cast<std::size_t>(x)] - mean);
    }
  }

  void permute() {
    const Int rows = in_[0].dim(0), d = in_[0].dim(1), k = a_.top_k;
    std::vector<Int> slots;
    for (Int s = 0; s < rows * k; ++s) {
      index_below(in_[1].i()[s], out_[2].size());
      slots.push_back(s);
    }
    std::stable_sort(slots.begin(), slots.end(), [&](Int x, Int y) { return in_[1].i()[x] < in_[1].i()[y]; });
    std::fill_n(out_[2].i(), out_[2].size(), 0);
    for (Int r = 0; r < rows * k; ++r) {
      const Int slot = slots[static_cast<std::size_t>(r)];
      out_[1].i()[slot] = static_cast<std::int32_t>(r);
      ++out_[2].i()[in_[1].i()[slot]];
      std::copy_n(in_[0].f() + slot / k * d, d, out_[0].f() + r * d);
    }
  }

  void permute_grad() {
    const Int d = out_[0].dim(1), k = in_[1].dim(1);
    std::fill_n(out_[0].f(), out_[0].size(), 0.0);
    for (Int slot = 0; slot < in_[1].size(); ++slot) {
      const Int row = index_below(in_[1].i()[slot], in_[0].dim(0));
      for (Int c = 0; c < d; ++c) out_[0].f()[slot / k * d + c] += in_[0].f()[row * d + c];
    }
  }

  void unpermute() {
    const Int d = out_[0].dim(1), k = in_[1].dim(1);
    std::fill_n(out_[0].f(), out_[0].size(), 0.0);
    for (Int slot = 0; slot < in_[1].size(); ++slot) {
      const Int row = index_below(in_[1].i()[slot], in_[0].dim(0));
      for (Int c = 0; c < d; ++c) out_[0].f()[slot / k * d + c] += in_[2].f()[slot] * in_[0].f()[row * d + c];
    }
  }

  void unpermute_grad() {
    const Int d = in_[0].dim(1), k = in_[2].dim(1);
    for (Int slot = 0; slot < in_[2].size(); ++slot) {
      const Int row = index_below(in_[2].i()[slot], in_[1].dim(0));
      double sum = 0;
      for (Int c = 0; c < d; ++c) {
        const double dy = in_[0].f()[slot / k * d + c];
        out_[0].f()[row * d + c] = in_[3].f()[slot] * dy;
        sum += dy * in_[1].f()[row * d + c];
      }
      out_[1].f()[slot] = sum;
    }
  }

  void sort_by_expert() {
    const View& counts = in_[1];
    const Int d = in_[0].dim(1), segments = counts.dim(0), sources = counts.dim(1), experts = counts.dim(2),
              bound = a_.rows_bound;
    require_counts(counts, in_[0].dim(0));
    Int sorted = 0;
    for (Int e = 0; e < experts; ++e) {
      for (Int s = 0; s < segments; ++s) {
        Int packed = s * bound;  // rows of segment s run by (source, expert)
        for (Int c = 0; c < sources; ++c) {
          for (Int x = 0; x < experts; ++x) {
            const Int count = counts.i()[(s * sources + c) * experts + x];
            if (x == e) {
              const Int from = a_.reverse ? sorted : packed, to = a_.reverse ? packed : sorted;
              std::copy_n(in_[0].f() + from * d, count * d, out_[0].f() + to * d);
              sorted += count;
            }
            packed += count;
          }
        }
      }
    }
  }

  // Visits (expert, first row, rows) of a sorted buffer.
  template <class Visit>
  void for_each_expert(const View& counts, Visit visit) const {
    const Int experts = counts.dim(2);
    require_counts(counts, in_[0].dim(0));
    Int first = 0;
    for (Int e = 0; e < experts; ++e) {
      Int rows = 0;
      for (Int s = 0; s < counts.dim(0) * counts.dim(1); ++s) rows += counts.i()[s * experts + e];
      visit(e, first, rows);
      first += rows;
    }
  }

  void grouped_matmul() {
    const Int k = a_.k, n = a_.n;
    for_each_expert(in_[2], [&](Int e, Int first, Int rows) {
      const double* w = in_[1].f() + e * k * n;
      for (Int r = first; r < first + rows; ++r) {
        for (Int j = 0; j < n; ++j) {
          double sum = 0;
          for (Int l = 0; l < k; ++l) sum += in_[0].f()[r * k + l] * (a_.trans_b ? w[j * k + l] : w[l * n + j]);
          out_[0].f()[r * n + j] = sum;
        }
      }
    });
  }

  void grouped_wgrad() {
    const Int n = a_.n, k = a_.k;
    for_each_expert(in_[2], [&](Int e, Int first, Int rows) {
      for (Int r = first; r < first + rows; ++r) {
        for (Int j = 0; j < n; ++j) {
          for (Int l = 0; l < k; ++l) out_[0].f()[(e * n + j) * k + l] += in_[0].f()[r * n + j] * in_[1].f()[r * k + l];
        }
      }
    });
  }

  // --- loss

  double logit(double raw) const { return softcap(a_.alpha * raw, a_.softcap); }

  void xent_max() {
    const Int v = in_[0].dim(1);
    for (Int t = 0; t < in_[0].dim(0); ++t) {
      double max = -std::numeric_limits<double>::infinity();
      for (Int c = 0; c < v; ++c) max = std::max(max, logit(in_[0].f()[t * v + c]));
      out_[0].f()[t] = max;
    }
  }

  void xent_sum() {
    const Int v = in_[0].dim(1), first = tp_index() * v;
    for (Int t = 0; t < in_[0].dim(0); ++t) {
      double sum = 0;
      for (Int c = 0; c < v; ++c) sum += std::exp(logit(in_[0].f()[t * v + c]) - in_[1].f()[t]);
      const Int label = in_[2].i()[t] - first;
      out_[0].f()[2 * t] = sum;
      out_[0].f()[2 * t + 1] = label >= 0 && label < v ? logit(in_[0].f()[t * v + label]) : 0.0;
    }
  }

  void xent_loss() {
    for (Int t = 0; t < in_[0].size(); ++t) {
      out_[0].f()[0] += a_.scale * (std::log(in_[1].f()[2 * t]) + in_[0].f()[t] - in_[1].f()[2 * t + 1]);
    }
  }

  void xent_grad() {
    const Int v = in_[0].dim(1), first = tp_index() * v;
    for (Int t = 0; t < in_[0].dim(0); ++t) {
      const Int label = in_[3].i()[t] - first;
      for (Int c = 0; c < v; ++c) {
        const double raw = in_[0].f()[t * v + c];
        const double p = std::exp(logit(raw) - in_[1].f()[t]) / in_[2].f()[2 * t];
        out_[0].f()[t * v + c] =
            a_.scale * (p - (c == label ? 1.0 : 0.0)) * softcap_slope(a_.alpha * raw, a_.softcap) * a_.alpha;
      }
    }
  }

  // --- optimizer

  void copy() {
    if (in_[0].tensor->dtype == Dtype::I32) {
      std::copy_n(in_[0].i(), in_[0].size(), out_[0].i());
    } else {
      std::copy_n(in_[0].f(), in_[0].size(), out_[0].f());
    }
  }

  const Bucket& bucket() const { return context_.chunk->buckets[static_cast<std::size_t>(a_.bucket)]; }
  // First element, in the bucket, of this rank's share.
  Int share() const { return mesh_.group_index(bucket().sharding.shards, context_.rank) * bucket().shard_elements; }
  // The parameter that owns an element of the bucket; null in padding.
  const Param* owner(Int element) const {
    for (const Param& param : bucket().params) {
      if (element >= param.offset_elements && element < param.offset_elements + param.elements()) return &param;
    }
    return nullptr;
  }
  // Gradients are the whole bucket, or already the share.
  Int first_grad(const View& grads) const { return grads.size() == bucket().shard_elements ? 0 : share(); }

  void squared_norm() {
    // Of a shard's copies the first is counted.
    if (mesh_.group_index(bucket().sharding.copies, context_.rank) != 0) return;
    for (Int i = 0; i < bucket().shard_elements; ++i) {
      const Param* param = owner(share() + i);
      if (param == nullptr || param->tied_copy || (param->tp_replicated() && tp_index() != 0)) continue;
      const double g = in_[0].f()[first_grad(in_[0]) + i];
      out_[0].f()[0] += g * g;
    }
  }

  void adamw() {
    const OptimizerSpec& adam = plan_.optimizer;
    const double norm = std::sqrt(in_[1].f()[0]);
    const double scale = adam.clip_grad > 0 && norm > adam.clip_grad ? adam.clip_grad / norm : 1.0;
    const double t = static_cast<double>(context_.step + 1);
    const double rate = learning_rate(adam, context_.step);
    const double correction1 = 1 - std::pow(adam.beta1, t), correction2 = 1 - std::pow(adam.beta2, t);
    for (Int i = 0; i < bucket().shard_elements; ++i) {
      const Param* param = owner(share() + i);
      if (param == nullptr) continue;
      const double g = scale * in_[0].f()[first_grad(in_[0]) + i];
      double &master = out_[1].f()[i], &m = out_[2].f()[i], &v = out_[3].f()[i];
      m = adam.beta1 * m + (1 - adam.beta1) * g;
      v = adam.beta2 * v + (1 - adam.beta2) * g * g;
      if (param->decay) master *= 1 - rate * adam.weight_decay;
      master -= rate * param->rate_scale * (m / correction1) / (std::sqrt(v / correction2) + adam.eps);
      out_[0].f()[(out_[0].size() == bucket().shard_elements ? 0 : share()) + i] = master;
    }
  }

  const Op& op_;
  const OpAttributes& a_;
  const std::vector<View>&in_, &out_;
  const OpContext& context_;
  const ParallelPlan& plan_;
  Mesh mesh_;
};

void all_reduce(Reduce reduce, const std::vector<std::vector<View>>& in, const std::vector<std::vector<View>>& out) {
  std::vector<double> total(static_cast<std::size_t>(in[0][0].size()));
  for (std::size_t e = 0; e < total.size(); ++e) {
    total[e] = in[0][0].f()[e];
    for (std::size_t r = 1; r < in.size(); ++r)
      total[e] = reduce == Reduce::Sum ? total[e] + in[r][0].f()[e] : std::max(total[e], in[r][0].f()[e]);
  }
  for (const auto& views : out) std::copy(total.begin(), total.end(), views[0].f());
}

void all_gather(const Op& op, const std::vector<std::vector<View>>& in, const std::vector<std::vector<View>>& out) {
  const std::size_t n = in.size();
  const std::size_t unit = static_cast<std::size_t>(size_of(in[0][0].tensor->dtype));
  const std::size_t block = static_cast<std::size_t>(in[0][0].size()) * unit / (op.attr.in_place ? n : 1);
  std::vector<std::byte> all(block * n);
  for (std::size_t r = 0; r < n; ++r)
    std::copy_n(in[r][0].bytes + (op.attr.in_place ? r * block : 0), block,
                all.begin() + static_cast<std::ptrdiff_t>(r * block));
  for (const auto& views : out) std::copy(all.begin(), all.end(), views[0].bytes);
}

void reduce_scatter(const Op& op, const std::vector<std::vector<View>>& in, const std::vector<std::vector<View>>& out) {
  const std::size_t n = in.size(), block = static_cast<std::size_t>(in[0][0].size()) / n;
  std::vector<std::vector<double>> sums(n, std::vector<double>(block, 0.0));
  for (std::size_t r = 0; r < n; ++r) {
    for (std::size_t e = 0; e < block; ++e) {
      for (std::size_t from = 0; from < n; ++from) sums[r][e] += in[from][0].f()[r * block + e];
    }
  }
  for (std::size_t r = 0; r < n; ++r) {
    double* to = out[r][0].f();
    if (op.attr.in_place) {
      // Only this rank's block is valid after: the rest is poison, so that nobody leans on it.
      std::fill_n(to, out[r][0].size(), std::numeric_limits<double>::quiet_NaN());
      to += r * block;
    }
    std::copy(sums[r].begin(), sums[r].end(), to);
  }
}

void all_to_all_counts(const std::vector<std::vector<View>>& in, const std::vector<std::vector<View>>& out) {
  const std::size_t n = in.size(), local = static_cast<std::size_t>(in[0][0].size()) / n;
  for (std::size_t r = 0; r < n; ++r) {
    for (std::size_t from = 0; from < n; ++from)
      std::copy_n(in[from][0].i() + r * local, local, out[r][0].i() + from * local);
  }
}

void all_to_all_v(const Op& op, const std::vector<std::vector<View>>& in, const std::vector<std::vector<View>>& out) {
  const std::size_t n = in.size();
  const Int local = op.attr.local_experts, d = in[0][0].dim(1);
  // Where, in the sender's rows (by expert) and in the receiver's (by source, then expert), each share starts.
  std::vector<Int> receive_at(n, 0);
  for (std::size_t r = 0; r < n; ++r) require_counts(in[r][1], (op.attr.reverse ? out : in)[r][0].dim(0));
  for (std::size_t source = 0; source < n; ++source) {
    Int send_at = 0;
    for (std::size_t target = 0; target < n; ++target) {
      Int rows = 0;
      for (Int e = 0; e < local; ++e) rows += in[source][1].i()[static_cast<Int>(target) * local + e];
      if (receive_at[target] + rows > op.attr.rows_bound)
        throw std::runtime_error("an expert buffer overflows its bound: " + op.label);
      const View& from = op.attr.reverse ? in[target][0] : in[source][0];
      const View& to = op.attr.reverse ? out[source][0] : out[target][0];
      const Int from_row = op.attr.reverse ? receive_at[target] : send_at,
                to_row = op.attr.reverse ? send_at : receive_at[target];
      std::copy_n(from.f() + from_row * d, rows * d, to.f() + to_row * d);
      send_at += rows;
      receive_at[target] += rows;
    }
  }
}

void ring_shift(const std::vector<std::vector<View>>& in, const std::vector<std::vector<View>>& out) {
  for (std::size_t r = 0; r < in.size(); ++r) {
    const std::vector<View>& before = in[(r + in.size() - 1) % in.size()];
    for (std::size_t i = 0; i < before.size(); ++i) std::copy_n(before[i].f(), before[i].size(), out[r][i].f());
  }
}

}  // namespace

void compute(const Op& op, const OpContext& context, const std::vector<View>& in, const std::vector<View>& out) {
  Computation(op, context, in, out).run();
}

void communicate(const Op& op, const std::vector<std::vector<View>>& in, const std::vector<std::vector<View>>& out) {
  switch (op.kind) {
    case OpKind::AllReduce: return all_reduce(op.attr.reduce, in, out);
    case OpKind::AllGather: return all_gather(op, in, out);
    case OpKind::ReduceScatter: return reduce_scatter(op, in, out);
    case OpKind::AllToAllCounts: return all_to_all_counts(in, out);
    case OpKind::AllToAllV: return all_to_all_v(op, in, out);
    case OpKind::RingShift: return ring_shift(in, out);
    default: throw std::logic_error("not a collective");
  }
}

}  // namespace trainyard
