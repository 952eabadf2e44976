#include "weight_options.h"

#include "common_options.h"
#include "option_values.h"

namespace pmkvq::cli {

void WeightCommandOptions::Register(CLI::App& command) {
  command
      .add_option(
          "--weights", weights,
          "as-stored, or q8: int8 codes in groups of 32, made while loading; decoding reads "
          "about half of BF16's bytes (docs/numerics.md)")
      ->transform(OneOf({NameOf(WeightMode::kAsStored), NameOf(WeightMode::kQ8)}))
      ->capture_default_str();
}

std::shared_ptr<const Model> WeightCommandOptions::Load(const std::string& folder,
                                                        int threads) const {
  return Model::Load(folder, {mode(), ResolveThreads(threads)});
}

void RefuseQuantizedWeights(CLI::App& command) {
  const auto check = [](const std::string& found) {
    if (found == NameOf(WeightMode::kAsStored)) return;
    throw CLI::ValidationError(
        "--weights",
        "found " + found + ", expected as-stored: calibration measures the model as stored");
  };
  // Without a group an option is not listed in the help.
  command.add_option_function<std::string>("--weights", check)->group("");
}

}  // namespace pmkvq::cli
