/** The stream of an engine, passed on to the client event by event. */
import type { FastifyReply } from "fastify";
import { brokeOffEvent, createEventFilter, type Renaming, type TokenCount } from "./engine-answer.ts";
import type { EngineReader } from "./engine-client.ts";

/** Gives the engine's answer to the client in another shape. Each function is called once at most, but `push`. */
export interface Presentation {
  /** @param json - the engine's whole answer, with the pinned name. */
  whole(json: string): Promise<object>;
  /** @param lines - whole lines of the engine's stream of events, with the pinned name. Returns what goes to the client now. */
  push(lines: string): string;
  /** Returns what goes to the client last, after the engine's end. */
  end(): Promise<string>;
  /** The engine broke off. Returns what tells the client. */
  broken(message: string): string;
}

const brokeOff = "The engine broke off while it answered. Ask again.";

interface StreamOptions {
  renaming: Renaming;
  hideUsage: boolean;
  /** Absent: the engine's own events. */
  present?: Presentation | undefined;
  /** Called once. `events`: the engine's count never came, and so many events were passed on. */
  onEnd(outcome: "served" | "failed", tokens: TokenCount | { events: number }): void;
  /** The engine failed in the middle of its answer. */
  onBroken(error: Error): void;
}

/** Writes the engine's events to the client as they come, and slows the engine down to the client's pace. */
export function streamAnswer(
  reply: Pick<FastifyReply, "hijack" | "getHeaders" | "raw">,
  contentType: string,
  { renaming, hideUsage, present, onEnd, onBroken }: StreamOptions,
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
      const passed = filter.push(chunk);
      const bytes = present === undefined ? passed : present.push(passed.toString("utf8"));
      if (bytes.length === 0 || raw.write(bytes)) return true;
      raw.once("drain", resume);
      return false;
    },
    end() {
      const bytes = filter.end();
      const { failure } = filter;
      if (failure !== undefined) onBroken(new Error(failure));
      onEnd(failure === undefined ? "served" : "failed", tokens());
      if (present === undefined) return void raw.end(bytes);
      const last = present.push(bytes.toString("utf8"));
      present.end().then(
        (ending) => raw.end(last + ending),
        (error: unknown) => raw.destroy(error as Error),
      );
    },
    broken(error) {
      const clientLeft = raw.destroyed;
      if (!clientLeft) onBroken(error);
      onEnd(clientLeft ? "served" : "failed", tokens());
      if (!clientLeft) raw.end(present === undefined ? brokeOffEvent(brokeOff) : present.broken(brokeOff));
    },
  };
}
