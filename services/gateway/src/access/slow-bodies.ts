/**
 * Bodies that come too slowly are cut off. Each of them holds a connection, and an upload holds a place in the object store besides, so
 * that a few hundred clients that send a byte now and then could keep everybody else out.
 */
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import { errorBodyOf } from "../errors.ts";

export interface SlowBodyLimits {
  /** A body may take this long, however slow it is. */
  graceMs: number;
  /** Afterwards it must have come this fast, on average since its request began, without the time in which it waited for us. */
  bytesPerSecond: number;
}
export const slowBodyLimits: SlowBodyLimits = { graceMs: 60_000, bytesPerSecond: 4096 };

/** Answers 408 `request_too_slow` and closes the connection. A body that waits for us, because the store is slow, is left alone. */
export function cutOffSlowBodies(app: FastifyInstance, { graceMs, bytesPerSecond }: SlowBodyLimits): void {
  app.addHook("onRequest", async (request, reply) => {
    const { raw } = request;
    if (raw.complete) return;
    const began = performance.now();
    const { socket } = raw;
    const before = socket.bytesRead;
    let oursMs = 0;
    let looked = began;
    const timer = setInterval(() => {
      if (raw.complete || socket.destroyed) return clearInterval(timer);
      const now = performance.now();
      // Bytes that are here and were not read yet: it is we who are slow.
      const isOurs = raw.readableLength >= raw.readableHighWaterMark;
      if (isOurs) oursMs += now - looked;
      looked = now;
      if (isOurs) return;
      const seconds = (now - began - oursMs) / 1000;
      if (seconds * 1000 < graceMs || (socket.bytesRead - before) / seconds >= bytesPerSecond) return;
      clearInterval(timer);
      cutOff(request, reply, `The body comes at less than ${bytesPerSecond} bytes per second. Send it faster, or in smaller requests.`);
    }, graceMs / 4);
    timer.unref();
    raw.once("close", () => clearInterval(timer));
  });
}

/** The handler still waits for the body, so the answer goes out beside it. */
function cutOff(request: FastifyRequest, reply: FastifyReply, message: string): void {
  const { socket } = request.raw;
  if (!reply.raw.headersSent && socket.writable) {
    const body = JSON.stringify(errorBodyOf(408, message, "request_too_slow"));
    socket.write(
      `HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\ncontent-length: ${Buffer.byteLength(body)}\r\nx-request-id: ${request.id}\r\nconnection: close\r\n\r\n${body}`,
    );
  }
  socket.destroySoon();
}
