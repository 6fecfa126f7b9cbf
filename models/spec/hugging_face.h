// Hugging Face's config.json: what it says of a model as a ModelSpec, and a ModelSpec as one.
#pragma once

#include <string>

#include "models/base/status.h"
#include "models/spec/model_spec.h"

namespace trainyard {

/// Reads a config.json of LlamaForCausalLM, MixtralForCausalLM, GPT2LMHeadModel or Grok-1's. What it asks for that a
/// ModelSpec cannot say is a problem.
Result<ModelSpec> load_hugging_face_config(const std::string& file);

/// The text of a config.json. A problem where Hugging Face's class for the family cannot say what the model is.
Result<std::string> hugging_face_config(const ModelSpec& model, const std::string& dtype);

/// The text of a model file, as scenarios name it.
std::string model_file_text(const ModelSpec& model);

}  // namespace trainyard
