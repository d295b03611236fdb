/**
 * What a soak leaves behind for the checker: a history of what clients asked and were answered, one JSON line each, and what NATS held at
 * the end. Times are milliseconds of the soak's own clock.
 */

/** From the request's first byte to the answer's last. */
interface Span {
  at: number;
  until: number;
}

/**
 * ok: acknowledged. refused: an error with a code; nothing was done. unknown: no answer came, so it may have been done or not.
 */
type Outcome = "ok" | "refused" | "unknown";

interface Command extends Span {
  outcome: Outcome;
  status: number;
  code?: string | undefined;
}

export interface ChatEntry extends Span {
  kind: "chat";
  /** The process that was asked, such as `gateway-1#2`. */
  process: string;
  adapter: string;
  user?: string | undefined;
  /** The last message. */
  asked: string;
  /** answered: to the very end. broken: no answer, or half of one. */
  outcome: "answered" | "refused" | "broken";
  status: number;
  code?: string | undefined;
  /** As the answer names it. */
  version?: number | undefined;
  text?: string | undefined;
  usage?: { prompt_tokens: number; completion_tokens: number } | undefined;
}

/** A move as an adapter's history tells it; `n` counts an adapter's moves from 1. */
export interface Move {
  n: number;
  kind: string;
  to: number;
  command: number | null;
}

export type Entry =
  | { kind: "start"; at: number; seed: number; tenant: string; base: string }
  | ({ kind: "upload"; name: string; rows: number; sha256: string; file?: string | undefined } & Command)
  | ({ kind: "run"; key: string; adapter: string; run?: string | undefined } & Command)
  | ({ kind: "move"; verb: "promote" | "rollback"; adapter: string; moves: Move[] } & Command)
  /** An adapter as the API showed it. */
  | ({
      kind: "seen";
      process: string;
      adapter: string;
      alias: number | null;
      moves: Move[];
      versions: { version: number; digest: string }[];
    } & Span)
  | ChatEntry
  /** A file's content as the API gave it at the end. */
  | ({ kind: "content"; file: string; sha256: string } & Span)
  /** One gateway's counts, as they stood in NATS. */
  | { kind: "usage"; at: number; key: string; rows: UsageCount[] }
  | { kind: "fault"; at: number; what: string; on: string }
  | { kind: "ended"; at: number; process: string; how: "stopped" | "crashed" }
  | { kind: "healed"; at: number }
  /** The line did not do by itself what was waited for, long after everything was healed. */
  | { kind: "stuck"; at: number; what: string };

export interface UsageCount {
  model: string;
  requests: number;
  promptTokens: number;
  completionTokens: number;
}

export interface StoredEvent {
  seq: number;
  subject: string;
  /** When NATS stored it. */
  time: number;
  data: unknown;
}

/** What NATS held at the end, read without Loraline's own libraries. */
export interface Stored {
  /** By stream. */
  streams: Record<string, StoredEvent[]>;
  /** By adapter. */
  adapters: Record<
    string,
    { alias: number | null; moves: Move[]; versions: { version: number; digest: string; runId: string; status: string }[] }
  >;
  /** By key of the bucket. */
  usage: Record<string, UsageCount[]>;
  /** By digest of the adapter's manifest: its files, base64, each compared with its own digest. */
  files: Record<string, { config: string; weights: string }>;
}

export interface Finding {
  /** Which promise was broken. */
  what: "lost" | "doubled" | "wrong-answer" | "moved-back" | "usage" | "refused" | "failed-message" | "stuck";
  message: string;
}
