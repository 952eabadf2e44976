// The templates behind the names of --chat-template. Internal to text/.
#pragma once

#include <span>
#include <string_view>

namespace pmkvq {

struct BuiltInTemplate {
  std::string_view name;
  std::string_view jinja;
};

std::span<const BuiltInTemplate> BuiltInTemplates();

}  // namespace pmkvq
