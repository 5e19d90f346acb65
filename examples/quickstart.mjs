// Quickstart: create a session, send a message, print what the agent says. Needs `agent-runtime serve`.
//   npm install socket.io-client && AGENT_RUNTIME_TOKEN=... node examples/quickstart.mjs "What files are here?"
import { io } from "socket.io-client";

const url = process.env.AGENT_RUNTIME_URL ?? "http://127.0.0.1:8700";
const token = process.env.AGENT_RUNTIME_TOKEN;
const headers = { authorization: `Bearer ${token}`, "content-type": "application/json" };
const body = JSON.stringify({ agentProfileRef: "default" });
const { sessionId } = await (await fetch(`${url}/api/sessions`, { method: "POST", headers, body })).json();

const socket = io(url, { auth: { token } });
socket.on("text_delta", ({ delta }) => process.stdout.write(delta));
socket.on("turn_end", () => { console.log(); socket.close(); });
await socket.emitWithAck("session:join", { sessionId });
await socket.emitWithAck("session:send", { sessionId, content: process.argv[2] ?? "Say hello.", messageId: "1" });
