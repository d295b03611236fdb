/**
 * Cuts off bodies that arrive too slowly. Each body holds a connection, and an upload also holds a place in the object store, so a few
 * hundred clients that send a byte now and then could block everybody else.
 */
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import { errorBodyOf } from "../errors.ts";

export interface SlowBodyLimits {
  /** During this time a body may be as slow as it likes, in ms. */
  graceMs: number;
  /** After that time its average speed must be at least this, in bytes a second, not counting time in which the gateway did not read. */
  bytesPerSecond: number;
}
export const slowBodyLimits: SlowBodyLimits = { graceMs: 60_000, bytesPerSecond: 4096 };

/** Answers 408 `request_too_slow` and closes the connection. A body that waits because the object store is slow is not cut off. */
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
      // Bytes have arrived and were not read yet, so the gateway is slow, not the client.
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

/** Sends the answer directly, because the handler is still waiting for the body. */
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
