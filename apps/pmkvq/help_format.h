// How --help and wrong usage read: the short value name beside the option, its default, whether it
// is required and what it cannot go with in words behind the description.
#pragma once

#include <CLI/CLI.hpp>

#include <string>

namespace pmkvq::cli {

class HelpFormatter : public CLI::Formatter {
 public:
  std::string make_option_opts(const CLI::Option* option) const override;
  std::string make_option_desc(const CLI::Option* option) const override;
};

// One line for a usage error: what is wrong and where help is.
std::string FormatUsageError(const CLI::App* app, const CLI::Error& error);

}  // namespace pmkvq::cli
