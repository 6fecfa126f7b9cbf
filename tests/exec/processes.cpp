#include "tests/exec/processes.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <random>
#include <stdexcept>

#include "exec/device_interpreter.h"
#include "exec/mesh_communicator.h"
#include "exec/rank_state.h"
#include "exec/step_interpreter.h"
#include "kernels/open_device.h"
#include "models/base/index.h"
#include "models/program/parameters.h"
#include "models/program/shards.h"
#include "tests/exec/host_device.h"

namespace trainyard::test {

namespace {

namespace fs = std::filesystem;

double get(const std::byte* data, Dtype dtype, std::int64_t i) {
  if (dtype == Dtype::F64) return reinterpret_cast<const double*>(data)[i];
  if (dtype == Dtype::F32) return static_cast<double>(reinterpret_cast<const float*>(data)[i]);
  throw std::logic_error("tests train in f32 and f64");
}

// One rank, in its process.
class RankProcess {
 public:
  RankProcess(const StepProgram& program, std::int64_t rank, std::vector<int> sockets, On on)
      : program_(program),
        kernels_(kernels::cpu_kernels()),
        communicator_(exec::mesh_communicator(rank, std::move(sockets))),
        at_once_(*communicator_) {
    if (on == On::Processor) {
      rank_ = std::make_unique<exec::StepInterpreter>(program, rank, *kernels_, *communicator_);
      return;
    }
    if (on == On::HostDevice) {
      device_ = std::make_unique<HostDevice>(*kernels_);
    } else {
      device_ = kernels::open_cuda_device(0, kStreamCount).value();
    }
    rank_ = std::make_unique<exec::DeviceInterpreter>(program, rank, *device_, at_once_, on == On::Gpu);
  }

  void set_weights(const Weights& weights) {
    exec::clear_state(*rank_);
    for_each_element([&](std::int64_t chunk, const Bucket& bucket, std::int64_t element, const ParamPart& part,
                         std::int64_t global) {
      exec::put_weights(*rank_, chunk, bucket, element, {weights.at(part.name).data[index(global)]});
    });
    rank_->commit();
  }

  exec::StepOutcome step(const GoldenTensor& tokens) {
    std::vector<std::int32_t> row(index(program_.plan.sequence_length + 1));
    auto outcome = rank_->step([&](std::int64_t sample) {
      for (std::size_t t = 0; t < row.size(); ++t)
        row[t] = static_cast<std::int32_t>(tokens.data[index(sample) * row.size() + t]);
      return row.data();
    });
    if (!outcome) throw std::runtime_error(to_string(outcome.problems().front()));
    return outcome.value();
  }

  // What of the full tensors this rank has; NaN elsewhere.
  Weights gradients() const {
    const ParallelPlan& plan = program_.plan;
    return collect(Role::Grads,
                   [&](const std::byte* frame, const Bucket& bucket, std::int64_t element, std::int64_t share) {
                     const bool stored_as_shard = reduces_every_micro_batch(bucket, plan);
                     return get(frame + bucket.grad_offset_bytes, grad_dtype(plan), stored_as_shard ? share : element);
                   });
  }
  Weights weights() const {
    return collect(Role::Optimizer,
                   [&](const std::byte* frame, const Bucket& bucket, std::int64_t, std::int64_t share) {
                     return get(frame + bucket.optimizer_offset_bytes, state_dtype(program_.plan), share);
                   });
  }

 private:
  template <class Visit>
  void for_each_element(Visit visit) const {
    for_each_run(program_, rank_->mesh(), rank_->rank(),
                 [&](std::size_t chunk, const Bucket& bucket, const Param&, std::int64_t element, const ParamPart& part,
                     std::int64_t global, std::int64_t count) {
                   for (std::int64_t i = 0; i < count; ++i)
                     visit(static_cast<std::int64_t>(chunk), bucket, element + i, part, global + i);
                 });
  }

  template <class Value>
  Weights collect(Role role, Value value) const {
    Weights out;
    std::map<std::int64_t, std::vector<std::byte>> frames;
    for (const Frame& frame : rank_->stage().frames) {
      if (frame.role != role) continue;
      std::vector<std::byte>& bytes = frames[frame.chunk];
      bytes.resize(index(frame.bytes));
      rank_->read(role, frame.chunk, 0, bytes.data(), frame.bytes);
    }
    for_each_element([&](std::int64_t chunk, const Bucket& bucket, std::int64_t element, const ParamPart& part,
                         std::int64_t global) {
      const std::int64_t share = element - rank_->share_begin(bucket);
      if (share < 0 || share >= bucket.shard_elements) return;
      GoldenTensor& tensor = out[part.name];
      if (tensor.data.empty()) {
        tensor.shape = part.global_shape;
        std::int64_t size = 1;
        for (const std::int64_t dim : part.global_shape) size *= dim;
        tensor.data.assign(index(size), std::numeric_limits<double>::quiet_NaN());
      }
      tensor.data[index(global)] = value(frames.at(chunk).data(), bucket, element, share);
    });
    return out;
  }

  const StepProgram& program_;
  std::shared_ptr<kernels::Kernels> kernels_;
  std::shared_ptr<exec::Communicator> communicator_;
  AtOnce at_once_;
  std::unique_ptr<kernels::Device> device_;
  std::unique_ptr<exec::Rank> rank_;
};

template <class T>
void put(std::ostream& out, const std::vector<T>& list) {
  const std::size_t size = list.size();
  out.write(reinterpret_cast<const char*>(&size), sizeof size);
  out.write(reinterpret_cast<const char*>(list.data()), static_cast<std::streamsize>(size * sizeof(T)));
}

template <class T>
std::vector<T> take(std::istream& in) {
  std::size_t size = 0;
  in.read(reinterpret_cast<char*>(&size), sizeof size);
  std::vector<T> list(size);
  in.read(reinterpret_cast<char*>(list.data()), static_cast<std::streamsize>(size * sizeof(T)));
  return list;
}

void put(std::ostream& out, const Weights& weights) {
  put(out, std::vector<std::size_t>{weights.size()});
  for (const auto& [name, tensor] : weights) {
    put(out, std::vector<char>(name.begin(), name.end()));
    put(out, tensor.shape);
    put(out, tensor.data);
  }
}

// Adds one rank's part of the tensors to the whole.
void merge(std::istream& in, Weights& whole) {
  for (std::size_t left = take<std::size_t>(in).at(0); left > 0; --left) {
    const std::vector<char> chars = take<char>(in);
    const std::string name(chars.begin(), chars.end());
    GoldenTensor part;
    part.shape = take<std::int64_t>(in);
    part.data = take<double>(in);
    const auto [entry, is_new] = whole.try_emplace(name, part);
    if (is_new) continue;
    for (std::size_t i = 0; i < part.data.size(); ++i) {
      double& slot = entry->second.data[i];
      if (std::isnan(part.data[i])) continue;
      if (!std::isnan(slot) && slot != part.data[i]) throw std::runtime_error("ranks disagree about " + name);
      slot = part.data[i];
    }
  }
}

void run_rank(const StepProgram& program, std::int64_t rank, const std::vector<int>& sockets, const Weights& weights,
              const GoldenTensor& tokens, int steps, On on, const fs::path& file) {
  RankProcess process(program, rank, sockets, on);
  process.set_weights(weights);
  std::vector<Reference::Step> outcomes;
  Weights gradients;
  for (int step = 0; step < steps; ++step) {
    const exec::StepOutcome outcome = process.step(tokens);
    outcomes.push_back({outcome.loss, outcome.grad_norm});
    if (step == 0) gradients = process.gradients();
  }
  std::ofstream out(file, std::ios::binary);
  put(out, outcomes);
  put(out, gradients);
  put(out, process.weights());
}

void close_all(const std::vector<int>& sockets) {
  for (const int socket : sockets) {
    if (socket >= 0) close(socket);
  }
}

}  // namespace

Run train_in_processes(const StepProgram& program, const Weights& weights, const GoldenTensor& tokens, int steps,
                       On on) {
  const std::int64_t ranks = Mesh(program.plan).ranks();
  const std::vector<std::vector<int>> sockets = exec::connect_mesh(ranks).value();
  const fs::path folder = fs::temp_directory_path() / ("trainyard-exec-" + std::to_string(std::random_device{}()));
  fs::create_directories(folder);
  std::vector<pid_t> processes;
  for (std::int64_t rank = 0; rank < ranks; ++rank) {
    const pid_t pid = fork();
    if (pid == 0) {
      for (std::int64_t other = 0; other < ranks; ++other) {
        if (other != rank) close_all(sockets[index(other)]);
      }
      try {
        run_rank(program, rank, sockets[index(rank)], weights, tokens, steps, on, folder / std::to_string(rank));
      } catch (const std::exception& error) {
        fprintf(stderr, "rank %d: %s\n", static_cast<int>(rank), error.what());
        _exit(1);
      }
      _exit(0);
    }
    processes.push_back(pid);
  }
  for (const auto& row : sockets) close_all(row);
  bool failed = false;
  for (const pid_t pid : processes) {
    int status = 0;
    waitpid(pid, &status, 0);
    failed |= !WIFEXITED(status) || WEXITSTATUS(status) != 0;
  }
  Run run;
  for (std::int64_t rank = 0; rank < ranks && !failed; ++rank) {
    std::ifstream in(folder / std::to_string(rank), std::ios::binary);
    run.steps = take<Reference::Step>(in);  // the last rank is on the last stage, which knows the loss
    merge(in, run.gradients);
    merge(in, run.weights);
  }
  fs::remove_all(folder);
  if (failed) throw std::runtime_error("a rank failed");
  return run;
}

}  // namespace trainyard::test
