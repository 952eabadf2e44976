#include "foreign_names.h"

#include <algorithm>
#include <iterator>

namespace pmkvq::cli {
namespace {

using enum ForeignName::Use;

constexpr std::string_view kWidthNote =
    "static-8 and static-4, or k=8+v=4 of pm-kvq for K and V apart";
constexpr std::string_view kWholeModel = "with cuda all of a model is on the GPU";
constexpr std::string_view kOneDevice = "a model runs on one device, leave it out";
constexpr std::string_view kOneMachine =
    "pmkvq runs on one machine and at most one GPU, leave it out";
constexpr std::string_view kSampling =
    "not supported: sampling has --temperature, --top-k, --top-p, --min-p, penalties and "
    "--logit-bias";
constexpr std::string_view kNoGrammar =
    "a server constrains output: response_format and tools of a request";
constexpr std::string_view kFromConfig = "it is read from the model's config.json";
constexpr std::string_view kMapped = "weights are always mapped from their files";
constexpr std::string_view kNoDraft = "there is no speculative decoding";

constexpr ForeignName kOptions[] = {
    // Context, output, batch.
    {"-c", "--max-len", "", kAlias},
    {"--ctx-size", "--max-len", "", kAlias},
    {"--context-length", "--max-len", ""},
    {"--max-model-len", "--max-len", "", kAlias},
    {"--max-seq-len", "--max-len", ""},
    {"--max-length", "--max-len", ""},
    {"-n", "--max-tokens", "", kAlias},
    {"--n-predict", "--max-tokens", "", kAlias},
    {"--predict", "--max-tokens", "", kAlias},
    {"--max-new-tokens", "--max-tokens", "", kAlias},
    {"-b", "--chunk", ""},
    {"-ub", "--chunk", ""},
    {"--ubatch-size", "--chunk", ""},
    {"--max-num-batched-tokens", "--chunk", ""},
    {"--enable-chunked-prefill", "--chunk", "prompts are always prefilled in chunks"},
    {"--batch-size", "--batch", "prompt tokens per step are --chunk"},
    {"--max-num-seqs", "--batch", ""},
    {"-np", "--batch", ""},
    {"--parallel", "--batch", ""},
    {"--data-parallel-size", "--replicas", "over one set of weights"},
    {"--num-return-sequences", "--n-samples", ""},
    // The cache.
    {"-ctk", "--kv", kWidthNote, kKeyType},
    {"-ctv", "--kv", kWidthNote, kValueType},
    {"--cache-type-k", "--kv", kWidthNote, kKeyType},
    {"--cache-type-v", "--kv", kWidthNote, kValueType},
    {"--kv-bits", "--kv", kWidthNote},
    {"--nbits", "--kv", kWidthNote},
    {"--kv-cache-dtype", "--kv", "its float type is --kv-dtype"},
    {"--cache-implementation", "--kv", ""},
    {"--kv-group-size", "--kv", "the key group= of the methods that have one"},
    {"--quantized-kv-start", "--kv", "pm-kvq quantises only when the budget is reached"},
    {"--gpu-memory-utilization", "--kv-budget", "a size, 6MiB, say"},
    {"--kv-cache-memory-bytes", "--kv-budget", ""},
    {"--max-kv-size", "--kv-budget", "a size, 6MiB, say"},
    {"--residual-length", "--n-window-token", ""},
    {"--keep", "--n-sink-token", ""},
    {"-fa", "--attention", "fast, say"},
    {"--flash-attn", "--attention", "fast, say"},
    // Model and weights.
    {"-m", "--model", "", kAlias},
    {"-hf", "--model", "a folder on this machine: download the model first"},
    {"-hfr", "--model", "a folder on this machine: download the model first"},
    {"--hf-repo", "--model", "a folder on this machine: download the model first"},
    {"--model-path", "--model", ""},
    {"-q", "--weights", "q8, say"},
    {"--quantization", "--weights", "q8, say"},
    {"--dtype", "--weights", "the float type of the cache is --kv-dtype"},
    {"--trust-remote-code", "", "no code of a model is ever run, leave it out"},
    {"--rope-scaling", "", kFromConfig},
    {"--rope-freq-base", "", kFromConfig},
    {"--rope-freq-scale", "", kFromConfig},
    {"--rope-theta", "", kFromConfig},
    {"--no-mmap", "", kMapped},
    {"--mlock", "", kMapped},
    {"--lora", "", "adapters are not supported: merge them into the weights first"},
    // Prompt and chat.
    {"-sys", "--system", ""},
    {"--system-prompt", "--system", ""},
    {"--jinja", "", "the model's chat template is always used, leave it out"},
    {"--chat-template-file", "--chat-template", ""},
    {"-cnv", "--chat", ""},
    {"--conversation", "--chat", ""},
    {"-i", "--chat", ""},
    {"--interactive", "--chat", ""},
    {"-no-cnv", "--chat-template", "none"},
    {"--no-conversation", "--chat-template", "none"},
    {"-r", "--stop", ""},
    {"--reverse-prompt", "--stop", ""},
    {"--prompt-file", "--file", ""},
    {"--no-display-prompt", "", "the prompt is never printed, leave it out"},
    // Sampling.
    {"--temp", "--temperature", "", kAlias},
    {"-s", "--seed", "", kAlias},
    {"--do-sample", "--temperature", "0 is greedy"},
    {"--num-beams", "", "there is no beam search: sampling only"},
    {"--repeat-penalty", "--repetition-penalty", ""},
    {"--repeat-last-n", "", kSampling},
    {"--typical", "", kSampling},
    {"--mirostat", "", kSampling},
    {"--grammar", "", kNoGrammar},
    {"--grammar-file", "", kNoGrammar},
    {"--json-schema", "", kNoGrammar},
    // Machine.
    {"-t", "--threads", "", kAlias},
    {"-tb", "--threads", ""},
    {"--threads-batch", "--threads", ""},
    {"--num-threads", "--threads", ""},
    {"-ngl", "--device", kWholeModel},
    {"--gpu-layers", "--device", kWholeModel},
    {"--n-gpu-layers", "--device", kWholeModel},
    {"-dev", "--device", "cuda, or cuda:N"},
    {"--main-gpu", "--device", "cuda:N"},
    {"--tensor-split", "", kOneDevice},
    {"--cpu-offload-gb", "", kOneDevice},
    {"--enforce-eager", "", "steps of decoding on a GPU are always captured, leave it out"},
    {"-tp", "", kOneMachine},
    {"--tensor-parallel-size", "", kOneMachine},
    {"-pp", "", kOneMachine},
    {"--pipeline-parallel-size", "", kOneMachine},
    {"-md", "", kNoDraft},
    {"--model-draft", "", kNoDraft},
    {"--draft-max", "", kNoDraft},
    {"--speculative-config", "", kNoDraft},
    {"--api-key", "--api-key-file", "a key on a command line is seen by all users"},
    // Servers. A name that other commands have, too, stands here for the second time.
    {"-np", "--max-sequences", ""},
    {"--parallel", "--max-sequences", ""},
    {"--max-num-seqs", "--max-sequences", ""},
    {"--max-running-requests", "--max-sequences", ""},
    {"--gpu-memory-utilization", "--kv-pool", "a size, 8GiB, say"},
    {"--mem-fraction-static", "--kv-pool", "a size, 8GiB, say"},
    {"--kv-cache-memory-bytes", "--kv-pool", ""},
    {"--swap-space", "--kv-pool", "pages are halved in place of being swapped out"},
    {"--preemption-mode", "--kv-floor", "pages are halved in place of preempting"},
    {"--enable-prefix-caching", "--prefix-cache", "on already"},
    {"--no-enable-prefix-caching", "--prefix-cache", "off"},
    {"--cache-reuse", "--prefix-cache", "on already"},
    {"--no-cache-prompt", "--prefix-cache", "off"},
    {"--disable-radix-cache", "--prefix-cache", "off"},
    {"-cb", "", "requests are always batched as they come, leave it out"},
    {"--cont-batching", "", "requests are always batched as they come, leave it out"},
    {"--alias", "--served-model-name", ""},
    {"--metrics", "", "/metrics is always there, leave it out"},
    {"--slots", "", "/slots is always there, leave it out"},
    {"--timeout", "--request-timeout", ""},
    {"--threads-http", "", "one thread has all connections, leave it out"},
    {"--ssl-keyfile", "--tls-key", ""},
    {"--ssl-key-file", "--tls-key", ""},
    {"--ssl-certfile", "--tls-cert", ""},
    {"--ssl-cert-file", "--tls-cert", ""},
    {"--allowed-origins", "--cors-origin", ""},
    {"--enable-auto-tool-choice", "", "tool calls are always read, leave it out"},
    {"--tool-call-parser", "--tool-calls", "by the model's chat template already"},
    {"--reasoning-parser", "--reasoning", "by the model's chat template already"},
    {"--reasoning-format", "--reasoning", "by the model's chat template already"},
    {"--uvicorn-log-level", "--log-file", ""},
    {"--kl-divergence", "", "pmkvq perplexity always prints the KL to fp16, leave it out"},
};

constexpr ForeignName kCommands[] = {
    {"generate", "run", ""},
    {"complete", "run", ""},
    {"cli", "run", ""},
    {"server", "serve", ""},
    {"evaluate", "eval", ""},
    {"benchmark", "eval", "for speed: bench"},
    {"ppl", "perplexity", ""},
    {"kld", "perplexity", ""},
    {"imatrix", "calibrate", ""},
    {"quantize", "run --weights q8", "for the cache: calibrate"},
    {"info", "inspect", ""},
    {"show", "inspect", ""},
    {"list", "methods", "cache methods; models are folders"},
    {"version", "--version", ""},
};

template <size_t n>
const ForeignName* Find(const ForeignName (&table)[n], std::string_view name) {
  const auto* const found = std::find_if(std::begin(table), std::end(table),
                                         [&](const ForeignName& row) { return row.name == name; });
  return found == std::end(table) ? nullptr : found;
}

}  // namespace

std::span<const ForeignName> ForeignOptions() { return kOptions; }
const ForeignName* FindForeignOption(std::string_view name) { return Find(kOptions, name); }

const ForeignName* FindForeignOption(std::string_view name,
                                     const std::function<bool(std::string_view)>& has_option) {
  const ForeignName* found = FindForeignOption(name);
  for (const ForeignName& row : kOptions) {
    if (row.name == name && has_option(row.ours)) found = &row;
  }
  return found;
}

const ForeignName* FindForeignCommand(std::string_view name) { return Find(kCommands, name); }

}  // namespace pmkvq::cli
