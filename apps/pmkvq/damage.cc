// pmkvq damage: a cache method applied to tensors, without a model.
#include <fmt/format.h>

#include <utility>

#include "commands.h"
#include "common_options.h"
#include "file_options.h"
#include "help_format.h"
#include "option_values.h"
#include "pmkvq/base/byte_size.h"
#include "pmkvq/io/json.h"
#include "pmkvq/research/methods/damage.h"
#include "terminal.h"

namespace pmkvq::cli {
namespace {

struct Options {
  std::string in;
  std::string out;
  std::string json;
  std::string kv_dtype = "f16";
  DamageOptions damage;
};

std::string ResultJson(const Options& options, const DamageResult& result) {
  JsonWriter json;
  json.BeginObject();
  json.Key("kv").String(options.damage.spec);
  json.Key("kv_dtype").String(options.kv_dtype);
  json.Key("tokens").Int(std::ssize(result.bytes));
  json.Key("prompt_len").Int(options.damage.prompt_len);
  json.Key("bytes").Array(result.bytes);
  json.Key("peak_bytes").Int(result.peak_bytes);
  json.Key("kept_share").Number(result.kept_share);
  json.EndObject();
  return json.text();
}

void Run(const Options& options) {
  DamageOptions damage = options.damage;
  damage.kv_dtype = ParseKvDtype(options.kv_dtype);
  damage.cancel = InterruptFlag();
  const SafetensorsFile in = SafetensorsFile::Open(options.in);
  const DamageResult result = DamageTensors(in, damage);
  WriteSafetensors(options.out, {{"k_read", result.k_read.view()},
                                 {"v_read", result.v_read.view()},
                                 {"kept", result.kept.view()}});
  if (!options.json.empty()) WriteJson(options.json, ResultJson(options, result));
  PrintError(fmt::format("wrote {}: {} tokens in {}, peak {}, {:.1f} % kept", options.out,
                         result.bytes.size(), FormatByteSize(result.bytes.back()),
                         FormatByteSize(result.peak_bytes), 100 * result.kept_share));
}

}  // namespace

void AddDamage(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "damage", "apply a cache method to keys and values in a file, without a model");
  command->add_option("--kv", options->damage.spec, KvHelp())
      ->type_name("SPEC")
      ->transform(KnownMethod())
      ->required();
  NamesFile(command
                ->add_option(
                    "--in", options->in,
                    "safetensors file: k, v [L, Hkv, T, D], k after RoPE; where the method needs "
                    "them, q [L, H, T, D], keys_before_rope [L, Hkv, T, D], attention_input and "
                    "block_input [L, T, E], logits [T, V]")
                ->required(),
            FileKind::kInput);
  NamesFile(command
                ->add_option("--out", options->out,
                             "safetensors file: k_read, v_read [L, Hkv, T, D] f32, what attention "
                             "reads after the last token; kept [L, Hkv, T], 0 where evicted")
                ->required(),
            FileKind::kOutput);
  command
      ->add_option("--prompt-len", options->damage.prompt_len,
                   "first tokens that are stored together, a prompt; the others come one by one")
      ->transform(WholeNumber(0, kMostTokens))
      ->capture_default_str();
  command
      ->add_option("--kv-dtype", options->kv_dtype,
                   "type of values at full precision, and of metadata")
      ->transform(OneOf({"f16", "bf16", "f32"}))
      ->capture_default_str();
  AddJson(*command, options->json, "bytes after each token, peak and kept share");
  AddExamples(*command,
              {"pmkvq damage --kv kivi:bits=2 --in states.safetensors --out read.safetensors",
               "pmkvq damage --kv kivi --in states.safetensors --out read.safetensors "
               "--prompt-len 64 --kv-dtype f32 --json -"});
  command->callback([options] { Run(*options); });
}

}  // namespace pmkvq::cli
