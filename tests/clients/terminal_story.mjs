// A terminal with the official client: node terminal_story.mjs <base url> <token> <session>.
// The last line printed is what was seen, in JSON.

import { io } from "socket.io-client";

const [base, token, sessionId] = process.argv.slice(2);
const socket = io(base, { auth: { token }, transports: ["websocket"], reconnection: false });
const decoder = new TextDecoder();
let shown = "";
let exited;
let more = () => {};

socket.on("terminal_output", ({ data }) => {
  shown += decoder.decode(Buffer.from(data, "base64"), { stream: true });
  more();
});
socket.on("terminal_exit", ({ code }) => {
  exited = code;
  more();
});

const { terminalId } = await ask("session:terminal", { sessionId, rows: 24, cols: 80 });
await ask("terminal:resize", { terminalId, rows: 40, cols: 111 });
await type("stty size\n");
const [size] = await until(() => shown.match(/\b40 111\b/));
await type("printf 'gr\\303\\274n\\n'\n");
await until(() => shown.includes("grün"));
await type("exit 9\n");
await until(() => exited !== undefined);
console.log(JSON.stringify({ size, code: exited }));
socket.close();

async function ask(event, payload) {
  const answer = await socket.timeout(15_000).emitWithAck(event, payload);
  if (!answer.ok) throw new Error(JSON.stringify(answer.error));
  return answer;
}

function type(text) {
  return ask("terminal:input", { terminalId, data: Buffer.from(text).toString("base64") });
}

async function until(seen) {
  while (!seen()) await new Promise((resolve) => (more = resolve));
  return seen();
}
