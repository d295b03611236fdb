/** The stream of an engine, passed on to the client event by event. */
import type { FastifyReply } from "fastify";
import { brokeOffEvent, createEventFilter, type Renaming, type TokenCount } from "./engine-answer.ts";
import type { EngineReader } from "./engine-client.ts";

interface StreamOptions {
  renaming: Renaming;
  hideUsage: boolean;
  /** Called once. `events`: the engine's count never came, and so many events were passed on. */
  onEnd(outcome: "served" | "failed", tokens: TokenCount | { events: number }): void;
  /** The engine failed in the middle of its answer. */
  onBroken(error: Error): void;
}

/** Writes the engine's events to the client as they come, and slows the engine down to the client's pace. */
export function streamAnswer(
  reply: Pick<FastifyReply, "hijack" | "getHeaders" | "raw">,
  contentType: string,
  { renaming, hideUsage, onEnd, onBroken }: StreamOptions,
): EngineReader {
  const { raw } = reply;
  const filter = createEventFilter(renaming, { hideUsage });
  reply.hijack();
  raw.writeHead(200, {
    ...(reply.getHeaders() as Record<string, string>),
    "content-type": contentType,
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
  });
  const tokens = (): TokenCount | { events: number } => filter.usage ?? { events: filter.events };
  return {
    read(chunk, resume) {
      const bytes = filter.push(chunk);
      if (bytes.length === 0 || raw.write(bytes)) return true;
      raw.once("drain", resume);
      return false;
    },
    end() {
      const bytes = filter.end();
      const { failure } = filter;
      if (failure !== undefined) onBroken(new Error(failure));
      onEnd(failure === undefined ? "served" : "failed", tokens());
      raw.end(bytes);
    },
    broken(error) {
      const clientLeft = raw.destroyed;
      if (!clientLeft) onBroken(error);
      onEnd(clientLeft ? "served" : "failed", tokens());
      if (!clientLeft) raw.end(brokeOffEvent("The engine broke off while it answered. Ask again."));
    },
  };
}
