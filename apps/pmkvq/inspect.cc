// pmkvq inspect: the content of a model, a plan, or a tensor file; the bytes of a cache.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <memory>

#include "commands.h"
#include "common_options.h"
#include "file_options.h"
#include "help_format.h"
#include "inspect_tensor_types.h"
#include "kv_effects.h"
#include "pmkvq/base/byte_size.h"
#include "pmkvq/io/checkpoint.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/gguf/gguf_file.h"
#include "pmkvq/io/json.h"
#include "pmkvq/io/safetensors.h"
#include "pmkvq/kv/cache_config.h"
#include "pmkvq/kv/kv_budget.h"
#include "pmkvq/model/model_size.h"
#include "pmkvq/research/calib/sensitivity_file.h"
#include "pmkvq/research/methods/registry.h"
#include "pmkvq/text/chat_template.h"
#include "pmkvq/text/tokenizer.h"
#include "terminal.h"

namespace pmkvq::cli {
namespace {

struct Options {
  std::string path;
  std::string json;
  KvCommandOptions kv;
  bool inspects_cache = false;  // --kv was given.
};

// Field names and values in order, shown as a table or as JSON.
struct Field {
  std::string name;
  std::string text;  // For the table.
  int64_t number = 0;
  bool is_number = false;
};

Field Number(const std::string& name, int64_t value) {
  return {name, fmt::format("{}", value), value, true};
}
Field Text(const std::string& name, const std::string& value) { return {name, value, 0, false}; }

std::string FormatFields(const std::vector<Field>& fields) {
  std::string text;
  for (const Field& field : fields) text += fmt::format("{:<29} {}\n", field.name, field.text);
  return text;
}

void WriteFields(const std::vector<Field>& fields, JsonWriter& json) {
  for (const Field& field : fields) {
    json.Key(field.name);
    if (field.is_number) {
      json.Int(field.number);
    } else {
      json.String(field.text);
    }
  }
}

std::string DescribeTokenizer(const Tokenizer& tokenizer) {
  return fmt::format("{} of {} tokens",
                     tokenizer.is_sentence_piece() ? "SentencePiece" : "byte-level BPE",
                     tokenizer.vocab_size());
}

// One that is not supported is no error here: the rest of the model can be used with token ids.
std::string DescribeTokenizerOf(const std::string& model) {
  if (!Tokenizer::IsIn(model)) return "none";
  try {
    return DescribeTokenizer(*Tokenizer::Load(model));
  } catch (const Unsupported& error) {
    return fmt::format("not supported: {}", error.what());
  }
}

// Latent attention caches one latent and one rope key a token.
void AddHeads(const ModelConfig& config, std::vector<Field>& fields) {
  if (!config.mla) {
    fields.push_back(Number("kv_heads", config.num_kv_heads));
    fields.push_back(Number("head_dim", config.head_dim));
    return;
  }
  const MlaConfig& mla = *config.mla;
  fields.push_back(Number("head_dim", config.head_dim));
  fields.push_back(Number("value_head_dim", mla.value_dim));
  fields.push_back(Number("kv_latent", mla.latent));
  fields.push_back(Number("rope_key", mla.rope_dim));
  if (mla.query_rank > 0) fields.push_back(Number("query_latent", mla.query_rank));
}

void InspectModel(const Options& options) {
  const Checkpoint checkpoint = Checkpoint::Open(options.path);
  for (const std::string& warning : checkpoint.warnings()) StderrLog().Warning(warning);
  const ModelConfig& config = checkpoint.config();
  int64_t num_parameters = 0;
  int64_t weight_bytes = 0;
  int64_t num_foreign = 0;
  for (const StoredWeight& tensor : checkpoint.weights().tensors()) {
    weight_bytes += static_cast<int64_t>(tensor.num_bytes);
    if (tensor.data != nullptr) {
      num_parameters += NumElements(tensor.shape);
    } else {
      num_foreign += 1;
    }
  }
  std::vector<Field> fields = {
      Text("kind", "model"),
      Text("architecture", config.architecture),
      Number("parameters", num_parameters),
      Number("weight_bytes", weight_bytes),
      Number("files", checkpoint.weights().num_files()),
      Number("blocks", config.num_layers),
      Number("hidden_size", config.hidden_size),
      Number("intermediate_size", config.intermediate_size),
      Number("heads", config.num_heads),
  };
  AddHeads(config, fields);
  fields.insert(fields.end(),
                {Number("vocab_size", config.vocab_size),
                 Number("max_position_embeddings", config.max_position_embeddings),
                 Number("kv_bytes_per_token_at_16_bit", 2 * KvGeometryOf(config).values()),
                 Text("identity", checkpoint.Identity())});
  if (!config.sliding_windows.empty()) {
    const int64_t window =
        *std::max_element(config.sliding_windows.begin(), config.sliding_windows.end());
    const auto count =
        std::count(config.sliding_windows.begin(), config.sliding_windows.end(), window);
    fields.push_back(Number("sliding_window", window));
    fields.push_back(Number("blocks_with_sliding_window", count));
  }
  if (config.moe) {
    const MoeConfig& moe = *config.moe;
    // Others are read for no token.
    const int64_t not_chosen = NumMatrixWeights(config) - NumActiveWeights(config);
    fields.push_back(Number("parameters_active_per_token", num_parameters - not_chosen));
    fields.push_back(Number("experts", moe.num_experts));
    fields.push_back(Number("experts_per_token", moe.num_chosen));
    fields.push_back(Number("expert_intermediate_size", moe.expert_size));
    fields.push_back(
        Number("blocks_with_experts", std::count(moe.blocks.begin(), moe.blocks.end(), true)));
  }
  if (!FindGgufFile(options.path).empty()) {
    fields.push_back(Text("tokenizer", DescribeTokenizerOf(options.path)));
    fields.push_back(Text("chat_template", HasChatTemplate(options.path, "") ? "yes" : "none"));
  }
  if (num_foreign > 0) fields.push_back(Number("tensors_of_types_not_computed_with", num_foreign));
  const std::vector<TensorTypeUse> types = TensorTypesOf(checkpoint);
  if (!options.json.empty()) {
    JsonWriter json;
    json.BeginObject();
    WriteFields(fields, json);
    WriteTensorTypes(types, json);
    json.EndObject();
    WriteJson(options.json, json.text());
  }
  if (options.json != "-") Print(FormatFields(fields) + FormatTensorTypes(types));
}

void PrintFields(const Options& options, const std::vector<Field>& fields) {
  if (!options.json.empty()) {
    JsonWriter json;
    json.BeginObject();
    WriteFields(fields, json);
    json.EndObject();
    WriteJson(options.json, json.text());
  }
  if (options.json != "-") Print(FormatFields(fields));
}

// What a tensor file lists, one after the other.
class TensorTable {
 public:
  TensorTable() {
    text_ = fmt::format("{:<56} {:>5}  {}\n", "tensor", "dtype", "shape");
    json_.BeginObject();
    json_.Key("kind").String("tensors");
    json_.Key("tensors").BeginObject();
  }
  void Add(std::string_view name, std::string_view dtype, const Shape& shape) {
    text_ += fmt::format("{:<56} {:>5}  {}\n", name, dtype, ToString(shape));
    json_.Key(name).BeginObject();
    json_.Key("dtype").String(dtype);
    json_.Key("shape").Array(shape);
    json_.EndObject();
  }
  void Show(const Options& options) {
    json_.EndObject().EndObject();
    WriteJson(options.json, json_.text());
    if (options.json != "-") Print(text_);
  }

 private:
  std::string text_;
  JsonWriter json_;
};

// A model; or a file of a vocabulary only, whose tokenizer has to be right; or tensors without a
// model.
void InspectGguf(const Options& options) {
  const std::string path = FindGgufFile(options.path);
  const GgufSet file = GgufSet::Open(path);
  const std::string architecture(file.Find("general.architecture").AsString());
  if (file.tensors().empty() && Tokenizer::IsIn(path)) {
    const std::shared_ptr<const Tokenizer> tokenizer = Tokenizer::Load(path);
    PrintFields(options, {Text("kind", "vocabulary"), Text("architecture", architecture),
                          Text("tokenizer", DescribeTokenizer(*tokenizer)),
                          Text("chat_template", HasChatTemplate(path, "") ? "yes" : "none")});
  } else if (!file.tensors().empty() && file.Find(architecture + ".block_count").IsMissing()) {
    TensorTable table;
    for (const GgufTensor& tensor : file.tensors()) {
      Shape shape(tensor.sizes, tensor.sizes + tensor.num_dims);
      std::reverse(shape.begin(), shape.end());
      table.Add(tensor.name, LayoutOf(tensor.type).name, shape);
    }
    table.Show(options);
  } else {
    InspectModel(options);
  }
}

void InspectSensitivity(const Options& options) {
  const SensitivityFile file = LoadSensitivity(options.path);
  if (!options.json.empty()) {
    std::string text = SensitivityJson(file);
    text.pop_back();  // WriteJson ends the text with a newline itself.
    WriteJson(options.json, text);
  }
  if (options.json == "-") return;
  std::string text = fmt::format("sensitivities of model {}\nblock",
                                 file.model_identity.empty() ? "(not told)" : file.model_identity);
  for (const char side : {'K', 'V'}) {
    for (const int bits : kWidths) {
      const auto& values = side == 'K' ? file.sensitivity.k : file.sensitivity.v;
      if (values[WidthIndex(bits)].empty()) continue;
      text += fmt::format("  {:>10}", fmt::format("{} @{}", side, bits));
    }
  }
  text += '\n';
  for (size_t block = 0; block < static_cast<size_t>(file.num_blocks); ++block) {
    text += fmt::format("{:>5}", block);
    for (const auto* side : {&file.sensitivity.k, &file.sensitivity.v}) {
      for (const std::vector<double>& values : *side) {
        if (!values.empty()) text += fmt::format("  {:>10.3e}", values[block]);
      }
    }
    text += '\n';
  }
  Print(text);
}

void InspectPlan(const Options& options) {
  const Plan plan = LoadPlan(options.path);
  if (!options.json.empty()) {
    JsonWriter json;
    json.BeginObject();
    json.Key("kind").String("plan");
    json.Key("model_identity").String(plan.model_identity);
    json.Key("k_bits").Array(plan.k_bits);
    json.Key("v_bits").Array(plan.v_bits);
    json.Key("budget_bytes").Array(plan.budget_bytes);
    json.Key("max_len").Int(plan.max_len);
    json.Key("alpha").Array(plan.alpha);
    json.Key("dataset").String(plan.record.dataset);
    json.Key("n_samples").Int(plan.record.num_samples);
    json.Key("seq_len").Int(plan.record.seq_len);
    json.Key("effective_len").Int(plan.record.effective_len);
    json.Key("weights").String(plan.record.weights);
    json.EndObject();
    WriteJson(options.json, json.text());
  }
  if (options.json == "-") return;
  std::string text = fmt::format("plan for model {}\n", plan.model_identity) + FormatPlan(plan);
  text += fmt::format("\n{:>5}  {:>6}  {:>6}  {:>12}  {:>6}  {:>12}  {:>12}\n", "block", "K bits",
                      "V bits", "budget", "alpha", "K sens. @2", "V sens. @2");
  const size_t narrowest = WidthIndex(2);
  const bool has_sensitivity =
      plan.sensitivity.k.size() > narrowest && !plan.sensitivity.k[narrowest].empty();
  for (size_t i = 0; i < plan.k_bits.size(); ++i) {
    text += fmt::format(
        "{:>5}  {:>6}  {:>6}  {:>12}  {:>6}  {:>12}  {:>12}\n", i, plan.k_bits[i], plan.v_bits[i],
        FormatByteSize(plan.budget_bytes[i]),
        plan.alpha.empty() ? "-" : fmt::format("{:.2f}", plan.alpha[i]),
        has_sensitivity ? fmt::format("{:.3e}", plan.sensitivity.k[narrowest][i]) : "-",
        has_sensitivity ? fmt::format("{:.3e}", plan.sensitivity.v[narrowest][i]) : "-");
  }
  Print(text);
}

// A plan or the result of pmkvq sensitivity.
void InspectJson(const Options& options) {
  const JsonValue json = JsonValue::ParseFile(options.path);
  if (json.IsObject() && json.Has("format")) return InspectPlan(options);
  if (json.IsObject() && json.Has("bits") && json.Has("k")) return InspectSensitivity(options);
  throw InvalidInput(options.path,
                     "found neither a plan nor sensitivities, expected one of them, or a model's "
                     "folder");
}

void InspectTensors(const Options& options) {
  const SafetensorsFile file = SafetensorsFile::Open(options.path);
  TensorTable table;
  for (const auto& [name, tensor] : file.tensors()) {
    table.Add(name, NameOf(tensor.dtype), tensor.shape);
  }
  for (const auto& [name, tensor] : file.foreign_tensors()) {
    table.Add(name, tensor.dtype, tensor.shape);
  }
  table.Show(options);
}

// What a cache takes, by the headers of the model's files.
void InspectCache(const Options& options) {
  const Checkpoint checkpoint = Checkpoint::Open(options.path);
  const SpecEngineOptions engine = options.kv.Resolve(1);
  const KvGeometry geometry = KvGeometryOf(checkpoint.config());
  const int64_t max_len = RequirementsOf(checkpoint, engine).max_len;
  const KvBudget budget = CheckKvOptions(checkpoint, engine);
  const int64_t needs = budget.SmallestThatHolds(max_len);
  const auto effective_bits = [&](int64_t bytes) {
    return EffectiveBits(geometry.values(), bytes, max_len);
  };
  JsonWriter json;
  json.BeginObject();
  json.Key("kind").String("cache");
  json.Key("kv").String(engine.kv.spec);
  json.Key("max_len").Int(max_len);
  json.Key("budget_bytes").Int(budget.total_bytes());
  json.Key("needs_bytes").Int(needs);
  json.Key("holds").Bool(budget.Holds(max_len));
  json.Key("effective_bits").Number(effective_bits(budget.total_bytes()));
  json.Key("needs_effective_bits").Number(effective_bits(needs));
  json.EndObject();
  WriteJson(options.json, json.text());
  if (options.json == "-") return;
  Print(fmt::format("cache {}, one sequence of {} tokens\n", engine.kv.spec, max_len));
  Print(fmt::format("budget {}, {:.2f} bits per value: {}\n", FormatByteSize(budget.total_bytes()),
                    effective_bits(budget.total_bytes()),
                    budget.Holds(max_len) ? "holds them" : "does not hold them"));
  Print(fmt::format("smallest budget that holds them: {}, {:.2f} bits per value\n",
                    FormatByteSize(needs), effective_bits(needs)));
}

void Inspect(const Options& options) {
  const std::filesystem::path path(options.path);
  const bool is_gguf = !FindGgufFile(options.path).empty();
  const bool is_model = is_gguf || std::filesystem::is_directory(path);
  if (options.inspects_cache) {
    if (!is_model) {
      throw InvalidInput(
          options.path,
          fmt::format("is {}, expected a model folder or a .gguf file: --kv asks what a cache of "
                      "a model takes{}",
                      path.extension() == ".json" ? "a plan or another file" : "a file",
                      path.extension() == ".json"
                          ? "; with a plan: pmkvq inspect MODEL --kv pm-kvq --plan " + options.path
                          : ""));
    }
    InspectCache(options);
  } else if (is_gguf) {
    InspectGguf(options);
  } else if (is_model) {
    InspectModel(options);
  } else if (path.extension() == ".safetensors") {
    InspectTensors(options);
  } else if (path.extension() == ".json") {
    InspectJson(options);
  } else {
    throw InvalidInput(options.path,
                       "cannot tell what this is; expected a model folder, a .gguf file, a plan or "
                       "sensitivities (.json) or a .safetensors file");
  }
}

// Of the cache options only those that change bytes count, and only with a cache to look at.
void WarnOfUnusedOptions(const Options& options, const CLI::App& command) {
  if (options.inspects_cache) {
    WarnWithoutEffect(command, {"--attention", "--chunk", "--threads"},
                      "bytes do not depend on it");
    return;
  }
  for (const CLI::Option* option : command.get_options()) {
    if (option->get_group() != "KV cache" || option->count() == 0) continue;
    WarnWithoutEffect(command, {option->get_name()}, "there is no --kv to look at");
  }
}

}  // namespace

void AddInspect(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "inspect", "what is in a model, a plan or a tensor file; with --kv, what a cache takes");
  NamesFile(command
                ->add_option("path", options->path,
                             "model folder, .gguf, plan or sensitivities (.json), or .safetensors")
                ->required(),
            FileKind::kInputs);
  auto* json = NamesFile(
      command->add_option("--json", options->json, "write as JSON (to stdout without a name, or -)")
          ->expected(0, 1),
      FileKind::kOutputOrStdout);
  options->kv.Register(*command);
  AddExamples(*command,
              {"pmkvq inspect models/longcot-10m",
               "pmkvq inspect models/longcot-10m --kv pm-kvq --kv-budget 6MiB --max-len 4096"});
  command->callback([options, command, json] {
    options->inspects_cache =
        command->get_option("--kv")->count() + command->get_option("--recipe")->count() > 0;
    if (json->count() > 0 && options->json.empty()) options->json = "-";
    WarnOfUnusedOptions(*options, *command);
    Inspect(*options);
  });
}

}  // namespace pmkvq::cli
