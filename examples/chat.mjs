// Prints an answer as it grows. Node 20 or newer, without packages. Usage: node chat.mjs QUESTION
const url = process.env.PMKVQ_URL ?? "http://127.0.0.1:8080";
const reply = await fetch(`${url}/v1/chat/completions`, {
  method: "POST",
  headers: { "Content-Type": "application/json", Authorization: `Bearer ${process.env.PMKVQ_KEY ?? "none"}` },
  body: JSON.stringify({ messages: [{ role: "user", content: process.argv[2] }], temperature: 0, max_tokens: 400, stream: true }),
});
if (!reply.ok) throw new Error((await reply.json()).error.message);

let held = "";
for await (const piece of reply.body.pipeThrough(new TextDecoderStream())) {
  const blocks = (held + piece).split("\n\n");
  held = blocks.pop();
  for (const block of blocks) {
    if (!block.startsWith("data: ") || block === "data: [DONE]") continue;
    const delta = JSON.parse(block.slice(6)).choices[0]?.delta ?? {};
    process.stdout.write((delta.reasoning_content ?? "") + (delta.content ?? ""));
  }
}
process.stdout.write("\n");
