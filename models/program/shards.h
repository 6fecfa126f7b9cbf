// Which elements of which full tensors a rank holds: the sharding table, walked.
#pragma once

#include <cstdint>

#include "models/program/program.h"

namespace trainyard {

/// Calls visit(chunk index, bucket, param, element, part, global, count) for each run of elements of the rank's
/// parameters: `count` elements from `element` of the bucket on are those of the Hugging Face tensor `part` from
/// `global` on.
template <class Visit>
void for_each_run(const StepProgram& program, const Mesh& mesh, std::int64_t rank, Visit visit) {
  const Coordinates at = mesh.coordinates(rank);
  const std::int64_t tp = program.plan.tp, ep = mesh.group_index(Group::Ep, rank);
  const StageProgram& stage = program.stages[static_cast<std::size_t>(at.pp)];
  for (std::size_t c = 0; c < stage.chunks.size(); ++c) {
    for (const Bucket& bucket : stage.chunks[c].buckets) {
      for (const Param& param : bucket.params) {
        const bool split0 = param.split0 == Split::Tp, split1 = param.split1 == Split::Tp;
        const std::int64_t local_experts = param.expert_parallel ? param.local_shape.dims[0] : 0;
        std::int64_t element = param.offset_elements;
        for (const ParamPart& part : param.parts) {
          if (param.expert_parallel && part.expert / local_experts != ep) continue;
          // Our [rows, columns] of this part, whole; then this rank's rows and columns of it.
          const bool matrix = part.global_shape.size() == 2;
          const std::int64_t columns = !matrix ? 1 : part.transposed ? part.global_shape[0] : part.global_shape[1];
          const std::int64_t rows = split0 ? part.rows / tp : part.rows, width = split1 ? columns / tp : columns;
          const std::int64_t row0 = part.first_row + (split0 ? at.tp * rows : 0), column0 = split1 ? at.tp * width : 0;
          for (std::int64_t r = row0; r < row0 + rows; ++r) {
            if (!part.transposed) {
              visit(c, bucket, param, element, part, r * columns + column0, width);
              element += width;
              continue;
            }
            for (std::int64_t k = column0; k < column0 + width; ++k)
              visit(c, bucket, param, element++, part, k * part.global_shape[1] + r, std::int64_t{1});
          }
        }
      }
    }
  }
}

}  // namespace trainyard
