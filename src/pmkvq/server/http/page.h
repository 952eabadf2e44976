// The web page of the server: a chat, and the cache as it is now. Compiled in.
#pragma once

#include "pmkvq/server/http/http_types.h"

namespace pmkvq::server {

// With a Content-Security-Policy that lets the browser run and load nothing but the page itself and
// this server's replies.
HttpReply ChatPage();

}  // namespace pmkvq::server
