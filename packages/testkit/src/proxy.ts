/** A proxy in front of a server. Tests can cut the connection, as if the network or the server were away. */
import { createServer, connect, type Server, type Socket } from "node:net";

export interface ProxyFixture extends AsyncDisposable {
  /** URL of the proxy, which leads to the server. */
  readonly url: string;
  /**
   * refused: connections are refused, and open ones are broken. silent: connections are accepted, but nothing is answered. lost: no byte
   * comes through any more and neither side is told, as when packets are lost; what was sent meanwhile comes when the proxy is restored.
   * A number: the proxy answers with that HTTP status and an HTML page.
   */
  cut(how: "refused" | "silent" | "lost" | number): Promise<void>;
  restore(): Promise<void>;
}

/** @param to - URL of a server on this machine. */
export async function startProxy(to: string): Promise<ProxyFixture> {
  const target = new URL(to);
  let how: "through" | "silent" | "lost" | number = "through";
  const sockets = new Set<Socket>();
  const keep = (socket: Socket): void => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket)).on("error", () => socket.destroy());
  };
  /** Pairs of sockets that are joined as soon as bytes may pass. */
  const joined = new Set<[Socket, Socket]>();
  const join = (socket: Socket): void => {
    const there = connect(Number(target.port), target.hostname);
    keep(there);
    const pair: [Socket, Socket] = [socket, there];
    joined.add(pair);
    socket.pipe(there).pipe(socket);
    socket.on("close", () => {
      joined.delete(pair);
      there.destroy();
    });
    there.on("close", () => socket.destroy());
  };
  const waiting = new Set<Socket>();
  const onConnection = (socket: Socket): void => {
    keep(socket);
    if (typeof how === "number") {
      const page = "<html><body><h1>Sorry</h1></body></html>";
      const answer = `HTTP/1.1 ${how} Sorry\r\ncontent-type: text/html\r\ncontent-length: ${page.length}\r\nconnection: close\r\n\r\n${page}`;
      socket.once("data", () => socket.end(answer));
    } else if (how === "through") join(socket);
    else if (how === "lost") waiting.add(socket);
  };
  const listen = (port: number): Promise<Server> =>
    new Promise((resolve, reject) => {
      const listening = createServer(onConnection);
      listening.once("error", reject).listen(port, "127.0.0.1", () => resolve(listening));
    });
  let server = await listen(0);
  const { port } = server.address() as { port: number };
  const stop = async (): Promise<void> => {
    const closed = server.listening ? new Promise((resolve) => server.close(resolve)) : undefined;
    for (const socket of sockets) socket.destroy();
    await closed;
  };
  return {
    url: `${target.protocol}//127.0.0.1:${port}`,
    async cut(so) {
      if (so === "lost") {
        how = so;
        for (const [here, there] of joined) {
          here.unpipe(there).pause();
          there.unpipe(here).pause();
        }
        return;
      }
      await stop();
      if (so === "refused") return;
      how = so;
      server = await listen(port);
    },
    async restore() {
      if (how === "lost") {
        how = "through";
        for (const [here, there] of joined) here.pipe(there).pipe(here);
        for (const socket of waiting) if (!socket.destroyed) join(socket);
        waiting.clear();
        return;
      }
      await stop();
      how = "through";
      server = await listen(port);
    },
    [Symbol.asyncDispose]: stop,
  };
}
