#include "token_ids.h"

#include "common_options.h"
#include "pmkvq/base/error.h"

namespace pmkvq::cli {

CLI::Validator TokenIds() {
  return CLI::Validator(
      [](std::string& text) -> std::string {
        try {
          (void)ParseIds(text, "");
        } catch (const InvalidInput& error) {
          return std::string(error.what()).substr(3);  // Behind the "[] " of no place.
        }
        return "";
      },
      "", "token ids");
}

}  // namespace pmkvq::cli
