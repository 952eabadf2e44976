// Templates written for this project. For plain conversations they give the text of the published
// templates of their families, and are tested against these. longcot is exactly the template of
// models/longcot-10m.
#include "pmkvq/text/chat_template_builtin.h"

#include <array>

namespace pmkvq {
namespace {

constexpr std::string_view kChatml = R"jinja(
{%- for message in messages -%}
  {{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}
)jinja";

constexpr std::string_view kQwen25 = R"jinja(
{%- if messages[0].role != 'system' -%}
  {{ '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n' }}
{%- endif -%}
{%- for message in messages -%}
  {{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}
)jinja";

constexpr std::string_view kQwq = R"jinja(
{%- for message in messages -%}
  {%- set content = message.content -%}
  {%- if message.role == 'assistant' and not loop.last -%}
    {%- set content = content.split('</think>')[-1].lstrip('\n') -%}
  {%- endif -%}
  {{ '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n<think>\n' }}{%- endif -%}
)jinja";

// Thinking of turns before the last question is dropped.
constexpr std::string_view kQwen3 = R"jinja(
{%- set ns = namespace(question=messages|length - 1, found=false) -%}
{%- for message in messages[::-1] -%}
  {%- set is_tool_answer = message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>') -%}
  {%- if not ns.found and message.role == 'user' and not is_tool_answer -%}
    {%- set ns.found = true -%}
    {%- set ns.question = messages|length - 1 - loop.index0 -%}
  {%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
  {%- set content = message.content -%}
  {%- if message.role == 'assistant' -%}
    {%- set thinking = '' -%}
    {%- if '</think>' in content -%}
      {%- set thinking = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].strip('\n') -%}
      {%- set content = content.split('</think>')[-1].lstrip('\n') -%}
    {%- endif -%}
    {%- if loop.index0 > ns.question and (loop.last or thinking) -%}
      {%- set content = '<think>\n' + thinking + '\n</think>\n\n' + content.lstrip('\n') -%}
    {%- endif -%}
  {%- endif -%}
  {{ '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{ '<|im_start|>assistant\n' }}
  {%- if enable_thinking is defined and not enable_thinking -%}{{ '<think>\n\n</think>\n\n' }}{%- endif -%}
{%- endif -%}
)jinja";

// The last system message comes first, without a mark.
constexpr std::string_view kDeepseekR1 = R"jinja(
{%- set ns = namespace(system='') -%}
{%- for message in messages if message.role == 'system' -%}{%- set ns.system = message.content -%}{%- endfor -%}
{{ bos_token|default('') + ns.system }}
{%- for message in messages -%}
  {%- if message.role == 'user' -%}{{ '<｜User｜>' + message.content }}
  {%- elif message.role == 'assistant' -%}
    {{ '<｜Assistant｜>' + message.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<｜Assistant｜><think>\n' }}{%- endif -%}
)jinja";

constexpr std::string_view kLlama3 = R"jinja(
{{- bos_token|default('') }}
{%- for message in messages -%}
  {{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content|trim + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif -%}
)jinja";

constexpr std::string_view kLlama31 = R"jinja(
{{- bos_token|default('') }}
{{- '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: ' }}
{{- date_string|default('26 Jul 2024') + '\n\n' }}
{%- if messages[0].role == 'system' -%}
  {{ messages[0].content|trim }}
  {%- set messages = messages[1:] -%}
{%- endif -%}
{{ '<|eot_id|>' }}
{%- for message in messages -%}
  {{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content|trim + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif -%}
)jinja";

constexpr std::string_view kLongcot =
    R"jinja({%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n<think>\n' }}{%- endif %})jinja";

constexpr std::array<BuiltInTemplate, 8> kTemplates = {{
    {"chatml", kChatml},
    {"qwen2.5", kQwen25},
    {"qwq", kQwq},
    {"qwen3", kQwen3},
    {"deepseek-r1", kDeepseekR1},
    {"llama3", kLlama3},
    {"llama3.1", kLlama31},
    {"longcot", kLongcot},
}};

}  // namespace

std::span<const BuiltInTemplate> BuiltInTemplates() { return kTemplates; }

}  // namespace pmkvq
