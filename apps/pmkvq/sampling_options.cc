#include "sampling_options.h"

#include "kv_effects.h"
#include "option_values.h"
namespace pmkvq::cli {

void SamplingCommandOptions::Register(CLI::App& command, const std::string& temperature_note,
                                      const std::string& top_p_note, const std::string& seed_text) {
  command_ = &command;
  const std::string group = "Sampling";
  command.add_option("--temperature", temperature, "0: greedy")
      ->transform(DecimalNumber(0, 100))
      ->default_str(temperature_note)
      ->group(group);
  command.add_option("--top-k", top_k, "0: off")
      ->transform(WholeNumber(0))
      ->capture_default_str()
      ->group(group);
  command.add_option("--top-p", top_p, "1: off")
      ->transform(DecimalNumber(0, 1))
      ->default_str(top_p_note)
      ->group(group);
  command.add_option("--min-p", min_p, "0: off")
      ->transform(DecimalNumber(0, 1))
      ->capture_default_str()
      ->group(group);
  command.add_option("--seed", seed, seed_text)
      ->transform(SeedNumber())
      ->capture_default_str()
      ->group(group);
}

SamplingParams SamplingCommandOptions::Resolve(double default_temperature,
                                               double default_top_p) const {
  SamplingParams params;
  params.temperature = temperature.value_or(default_temperature);
  params.top_k = top_k;
  params.top_p = top_p.value_or(default_top_p);
  params.min_p = min_p;
  return params;
}

void SamplingCommandOptions::WarnOfUnused(double default_temperature) const {
  if (temperature.value_or(default_temperature) != 0) return;
  WarnWithoutEffect(*command_, {"--top-k", "--top-p", "--min-p", "--seed"},
                    temperature ? "--temperature 0 takes the likeliest token"
                                : "the temperature is 0 here unless --temperature is given");
}

}  // namespace pmkvq::cli
