// The stock Socket.IO server for Node.js as a peer of `bench/fanout.py`; what it speaks is in `fanout_servers.py`.

import { createServer } from "node:http";
import { createServer as createControl } from "node:net";
import { createInterface } from "node:readline";

import { Server } from "socket.io";

const head = JSON.parse(process.argv[2]);
const http = createServer();
const io = new Server(http);
let seq = 0;

io.on("connection", (socket) => {
  socket.on("session:join", (room, ack) => {
    socket.join(room);
    ack({ ok: true });
  });
});

const control = createControl((connection) => {
  createInterface({ input: connection }).on("line", (line) => {
    const [room, delta] = line.split(" ");
    const event = { ...head, seq: ++seq, ts: new Date().toISOString(), type: "text_delta", blockId: "b-1", delta };
    io.to(room).emit("text_delta", event);
  });
});

http.listen(0, "127.0.0.1", 2048, () => {
  control.listen(0, "127.0.0.1", () => {
    console.log(JSON.stringify({ port: http.address().port, control: control.address().port }));
  });
});
process.on("SIGTERM", () => process.exit(0));
