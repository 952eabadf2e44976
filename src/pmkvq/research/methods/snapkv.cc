// SnapKV (arXiv 2404.14469; FasterDecoding/SnapKV, and KVCache-Factory): at the end of a prompt
// each KV head keeps the tokens that the prompt's last queries attend to most, and the last tokens.
//
// The authors' code repeats KV heads first and chooses for each query head, which undoes the saving
// of grouped queries; here the heads that share a KV head add up.
#include "pmkvq/research/methods/prompt_eviction.h"
#include "pmkvq/research/methods/simulated_method.h"

namespace pmkvq {

SimulatedMethod SnapKvMethod() {
  return {"snapkv", "keeps of a prompt the tokens that its last queries attend to",
          PromptEviction::Keys(),
          [](const MethodSpec& spec,
             const MethodContext& context) -> std::shared_ptr<const CacheMethod> {
            return std::make_shared<PromptEviction>(spec, context);
          }};
}

}  // namespace pmkvq
