#include "pmkvq/research/methods/registry.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <mutex>
#include <utility>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/kv/packed/packed_cache.h"
#include "pmkvq/kv/spec/packed_spec.h"
#include "pmkvq/kv/spec/spec.h"
#include "pmkvq/research/calib/reference_accounting.h"
#include "pmkvq/research/methods/reference_cache.h"
#include "pmkvq/research/methods/simulated_method.h"

namespace pmkvq {

// Published methods: one line each, the function that describes it (simulated_method.h).
#define PMKVQ_SIMULATED_METHODS(METHOD) \
  METHOD(RtnMethod)                     \
  METHOD(KiviMethod)                    \
  METHOD(MikvMethod)                    \
  METHOD(RotateKvMethod)                \
  METHOD(MixKvqMethod)                  \
  METHOD(KittyMethod)                   \
  METHOD(KvTunerMethod)                 \
  METHOD(OscarMethod)                   \
  METHOD(KvMixMethod)                   \
  METHOD(WindowMethod)                  \
  METHOD(RandomEvictionMethod)          \
  METHOD(SnapKvMethod)                  \
  METHOD(RkvMethod)                     \
  METHOD(H2oMethod)                     \
  METHOD(PyramidKvMethod)               \
  METHOD(PruningMethod)                 \
  METHOD(ConfKvMethod)                  \
  METHOD(FastKvZipMethod)               \
  METHOD(CqMethod)                      \
  METHOD(TadaMethod)                    \
  METHOD(DecoQuantMethod)               \
  METHOD(KvarNMethod)                   \
  METHOD(TurboQuantMethod)              \
  METHOD(QaqMethod)                     \
  METHOD(XQuantMethod)                  \
  METHOD(SvdqMethod)                    \
  METHOD(ReCalKvMethod)                 \
  METHOD(SubGenMethod)                  \
  METHOD(CocktailMethod)

#define PMKVQ_DECLARE(method) SimulatedMethod method();
PMKVQ_SIMULATED_METHODS(PMKVQ_DECLARE)
#undef PMKVQ_DECLARE

namespace {

using MethodList = std::vector<std::shared_ptr<const SimulatedMethod>>;

const MethodList& OwnMethods() {
#define PMKVQ_CALL(method) std::make_shared<const SimulatedMethod>(method()),
  static const MethodList methods = {PMKVQ_SIMULATED_METHODS(PMKVQ_CALL)};
#undef PMKVQ_CALL
  return methods;
}

struct AddedMethods {
  std::mutex mutex;
  MethodList list;
};
// Never destroyed: its methods may belong to an interpreter that is gone when the process ends.
AddedMethods& Added() {
  static auto* const added = new AddedMethods;
  return *added;
}

MethodList SimulatedMethods() {
  MethodList methods = OwnMethods();
  const std::lock_guard lock(Added().mutex);
  methods.insert(methods.end(), Added().list.begin(), Added().list.end());
  return methods;
}

// A SPEC whose name is known.
struct Choice {
  MethodSpec spec;
  std::shared_ptr<const SimulatedMethod> simulated;  // Null: packed.
  const SpecKeys* keys = nullptr;
};

void FindMethod(Choice& choice) {
  std::vector<std::string> names;
  for (const PackedMethod& method : PackedMethods()) {
    if (choice.spec.name == method.name) choice.keys = &method.keys;
    names.emplace_back(method.name);
  }
  for (const auto& method : SimulatedMethods()) {
    if (choice.spec.name == method->name) {
      choice.simulated = method;
      choice.keys = &method->keys;
    }
    names.push_back(method->name);
  }
  if (choice.keys != nullptr) return;
  throw InvalidInput("--kv", fmt::format("unknown method '{}', expected one of {}",
                                         choice.spec.name, fmt::join(names, ", ")));
}

Choice Resolve(const std::string& text) {
  Choice choice;
  choice.spec = ParseMethodSpec(text);
  FindMethod(choice);
  choice.spec.Check(*choice.keys);
  return choice;
}

// The file of the key from=, or null.
std::shared_ptr<const MethodData> DataOf(const Choice& choice, const KvRequirements& requirements) {
  const auto found = choice.spec.keys.find("from");
  if (found == choice.spec.keys.end()) return nullptr;
  const std::string& path = found->second;
  auto data = std::make_shared<const MethodData>(LoadMethodData(path));
  const auto check = [&](const char* what, const std::string& made_for, const std::string& wanted) {
    if (made_for == wanted) return;
    throw InvalidInput(path, fmt::format("made for {} {}, expected {}; pmkvq calibrate --kv {} "
                                         "makes one",
                                         what, made_for, wanted, choice.spec.name));
  };
  check("method", data->method, choice.spec.name);
  check("a model of", Describe(KvGeometry(data->geometry)), Describe(requirements.geometry));
  if (requirements.checkpoint != nullptr) {
    check("model", data->model_identity, requirements.checkpoint->Identity());
  }
  return data;
}

struct Simulation {
  SimulatedConfig config;
  std::shared_ptr<const CacheMethod> method;
};

Simulation ResolveSimulated(const KvOptions& options, const KvRequirements& requirements,
                            const Choice& choice) {
  CheckCommonOptions(options, requirements);
  if (options.reference_accounting) {
    throw InvalidInput(
        "--reference-accounting",
        fmt::format("{} counts every byte, expected a method of pages", choice.spec.name));
  }
  RefuseSlidingWindows(requirements.geometry, "--kv " + choice.spec.name);
  const UniformKvGeometry geometry = UniformOf(requirements.geometry, "--kv " + choice.spec.name);
  Simulation simulation;
  simulation.method = choice.simulated->make(
      choice.spec, {geometry, options.kv_dtype, DataOf(choice, requirements)});
  SimulatedConfig& config = simulation.config;
  config.geometry = geometry;
  config.float_type = options.kv_dtype;
  config.max_sequences = requirements.max_sequences;
  config.num_threads = requirements.num_threads;
  config.rope = requirements.rope;
  config.budget_bytes = BudgetsFor(*simulation.method, geometry.num_layers, requirements.max_len);
  if (options.budget_bytes > 0) {
    config.budget_bytes = SplitBudget(options.budget_bytes, config.budget_bytes);
  }
  ValidateSimulatedConfig(config, *simulation.method);
  return simulation;
}

int64_t ReferenceBudget(const CacheConfig& config, size_t layer, int64_t max_len,
                        PageWidths widths) {
  return ReferenceBlockBytes(config.geometry.blocks[layer], max_len, widths.k, widths.v);
}

CacheConfig ResolveReferenceConfig(const KvOptions& options, const KvRequirements& requirements) {
  RefuseSlidingWindows(requirements.geometry, "--reference-accounting");
  CacheConfig config =
      ResolvePackedConfig(options, requirements, {ReferenceBudget, ReferenceFloorBytes});
  config.device = {};  // Its pages lie on the host.
  ValidateReferenceConfig(config);
  return config;
}

}  // namespace

CacheConfig ResolveCacheConfig(const KvOptions& options, const KvRequirements& requirements) {
  const Choice choice = Resolve(options.spec);
  PMKVQ_CHECK_MSG(choice.simulated == nullptr, "a simulated method has no packed layout");
  return CountsPayload(options) ? ResolveReferenceConfig(options, requirements)
                                : ResolvePackedConfig(options, requirements);
}

KvBudget ResolveKvBudget(const KvOptions& options, const KvRequirements& requirements) {
  const Choice choice = Resolve(options.spec);
  if (choice.simulated == nullptr) {
    const CacheConfig config = ResolveCacheConfig(options, requirements);
    return CountsPayload(options) ? KvBudget(config, ReferenceFloorBytes) : KvBudget(config);
  }
  const Simulation simulation = ResolveSimulated(options, requirements, choice);
  return KvBudget(simulation.config, simulation.method);
}

std::unique_ptr<KvStore> MakeKvStore(const KvOptions& options, const KvRequirements& requirements) {
  const Choice choice = Resolve(options.spec);
  if (requirements.make_packed != nullptr &&
      (choice.simulated != nullptr || CountsPayload(options))) {
    throw Unsupported(
        "--kv " + choice.spec.name,
        fmt::format("found {} with ranks that share a model, or with --tp-slices, expected fp16, "
                    "static-b or pm-kvq: other caches need whole models (--tp 1)",
                    choice.simulated != nullptr ? "a published method" : "--reference-accounting"));
  }
  if (choice.simulated == nullptr) {
    const CacheConfig config = ResolveCacheConfig(options, requirements);
    if (CountsPayload(options)) return std::make_unique<ReferenceKvCache>(config);
    return requirements.make_packed != nullptr ? requirements.make_packed(config)
                                               : MakePackedKvCache(config);
  }
  const Simulation simulation = ResolveSimulated(options, requirements, choice);
  return std::make_unique<SimulatedKvCache>(simulation.config, simulation.method);
}

std::shared_ptr<const Model> ModelWithWeightsOf(const KvOptions& options, const Model& model,
                                                int num_threads) {
  const Choice choice = Resolve(options.spec);
  if (choice.simulated == nullptr || choice.simulated->replacements == nullptr) return nullptr;
  KvRequirements requirements;
  requirements.geometry = model.kv_geometry();
  requirements.checkpoint = &model.checkpoint();
  const MethodContext context{UniformOf(requirements.geometry, "--kv " + choice.spec.name),
                              options.kv_dtype, DataOf(choice, requirements)};
  return model.WithWeights(choice.simulated->replacements(choice.spec, context), num_threads);
}

const std::vector<Tensor>& KeyScalesOf(const KvOptions& options) {
  static const std::vector<Tensor> kNone;
  return Resolve(options.spec).simulated == nullptr ? PackedKeyScales(options) : kNone;
}

std::vector<MethodInfo> ListMethods() {
  std::vector<MethodInfo> methods;
  for (const PackedMethod& method : PackedMethods()) {
    methods.push_back({method.name, method.description, method.keys});
  }
  for (const auto& method : SimulatedMethods()) {
    methods.push_back(
        {method->name, method->description, method->keys, true, method->calibrate != nullptr});
  }
  return methods;
}

void AddMethod(SimulatedMethod method) {
  const auto refuse = [&](const std::string& expected) {
    throw InvalidInput("method",
                       fmt::format("found the name '{}', expected {}", method.name, expected));
  };
  const auto is_letter = [](char c) { return c >= 'a' && c <= 'z'; };
  const bool is_well_formed = !method.name.empty() && is_letter(method.name.front()) &&
                              std::all_of(method.name.begin(), method.name.end(), [&](char c) {
                                return is_letter(c) || (c >= '0' && c <= '9') || c == '-';
                              });
  if (!is_well_formed) refuse("lower-case letters, digits and '-', beginning with a letter");
  const auto has_name = [&](const auto& one) { return one->name == method.name; };
  const auto& own = OwnMethods();
  const auto& packed = PackedMethods();
  if (std::any_of(own.begin(), own.end(), has_name) ||
      std::any_of(packed.begin(), packed.end(),
                  [&](const PackedMethod& one) { return one.name == method.name; })) {
    refuse("one that is no method of this library");
  }
  const auto added = std::make_shared<const SimulatedMethod>(std::move(method));
  RemoveMethod(added->name);
  const std::lock_guard lock(Added().mutex);
  Added().list.push_back(added);
}

bool RemoveMethod(const std::string& name) {
  std::shared_ptr<const SimulatedMethod> removed;  // Destroyed without the lock.
  const std::lock_guard lock(Added().mutex);
  MethodList& list = Added().list;
  const auto found = std::find_if(list.begin(), list.end(),
                                  [&](const auto& method) { return method->name == name; });
  if (found == list.end()) return false;
  removed = std::move(*found);
  list.erase(found);
  return true;
}

std::string CodeHashOfSpec(const std::string& spec) {
  const Choice choice = Resolve(spec);
  return choice.simulated == nullptr ? "" : choice.simulated->code_hash;
}

std::vector<std::pair<std::string, std::string>> FilesOfSpec(const std::string& spec) {
  const Choice choice = Resolve(spec);
  return choice.spec.Files(*choice.keys);
}

void CheckIsCalibrated(const std::string& spec) {
  const Choice choice = Resolve(spec);
  if (choice.simulated == nullptr || choice.simulated->calibrate == nullptr) {
    std::vector<std::string> names;
    for (const auto& method : SimulatedMethods()) {
      if (method->calibrate != nullptr) names.push_back(method->name);
    }
    throw InvalidInput("--kv", fmt::format("{} has nothing to calibrate, expected one of pm-kvq, "
                                           "{}",
                                           choice.spec.name, fmt::join(names, ", ")));
  }
  if (choice.spec.keys.contains("from")) {
    throw InvalidInput("--kv", fmt::format("'{}': calibration makes the file of from=, expected a "
                                           "SPEC without it",
                                           spec));
  }
}

MethodData CalibrateMethod(const std::string& spec, DType kv_dtype,
                           const CalibrationContext& calibration, const CalibrationRecord& record) {
  CheckIsCalibrated(spec);
  const Choice choice = Resolve(spec);
  MethodData data;
  data.method = choice.spec.name;
  data.spec = spec;
  data.model_identity = calibration.model->checkpoint().Identity();
  data.geometry = UniformOf(calibration.model->kv_geometry());
  data.record = record;
  data.tensors =
      choice.simulated->calibrate(choice.spec, {data.geometry, kv_dtype, nullptr}, calibration);
  return data;
}

}  // namespace pmkvq
