/** How far a piece of work is: a bar on a terminal, a line every few seconds elsewhere. */
import { type Options, Presets, SingleBar } from "cli-progress";
import { byteWords, duration, type Terminal, writeLine } from "./terminal.ts";

interface Shown {
  /** Such as `evaluating`. */
  doing: string;
  done: number;
  /** 0: nobody knows. */
  total: number;
  /** How far it is, in words; empty: nobody knows. */
  figures: string;
}

export interface WorkDone {
  done: number;
  total?: number | null | undefined;
  etaSeconds?: number | null | undefined;
}

/** `1,200/4,000 · ETA 12.0 s`, and of bytes `1.5 GiB/3 GiB · ETA 12.0 s`. */
export function workFigures({ done, total, etaSeconds }: WorkDone, unit: "count" | "bytes" = "count"): string {
  const words = (amount: number): string => (unit === "bytes" ? byteWords(amount) : amount.toLocaleString("en"));
  const isUnderWay = typeof etaSeconds === "number" && etaSeconds > 0 && done < (total ?? 0);
  return `${words(done)}${typeof total === "number" ? `/${words(total)}` : ""}${isUnderWay ? ` · ETA ${duration(etaSeconds * 1000)}` : ""}`;
}

/** Width of the words before the bar. */
const words = 33;

export function showBar({ err, columns }: Pick<Terminal, "err" | "columns">): { update(shown: Partial<Shown>): void; end(): void } {
  const options: Options = {
    format: "{doing}  {bar}  {figures}",
    stream: err,
    hideCursor: true,
    clearOnComplete: false,
    stopOnComplete: false,
    barsize: Math.max(10, Math.min(30, columns - 90)),
    fps: 5,
    linewrap: false,
    autopadding: true,
  };
  const bar = new SingleBar(options, Presets.shades_classic);
  bar.start(1, 0, { doing: "…".padEnd(words), figures: "" });
  const cut = (text: string): string => (text.length > words ? `${text.slice(0, words - 1)}…` : text.padEnd(words));
  return {
    update({ doing, done, total, figures }) {
      if (total !== undefined) bar.setTotal(Math.max(1, total));
      const payload = { ...(doing === undefined ? {} : { doing: cut(doing) }), ...(figures === undefined ? {} : { figures }) };
      if (done === undefined) bar.update(payload);
      else bar.update(done, payload);
    },
    end: () => bar.stop(),
  };
}

const lineEveryMs = 5000;

/** Says what is done once, and how far it is every few seconds. */
export function showLines({ err }: Pick<Terminal, "err">): (doing: string, figures?: string) => void {
  let about: string | undefined;
  let saidAt = Number.NEGATIVE_INFINITY;
  return (doing, figures = "") => {
    const isSame = about === doing;
    if (isSame && (figures === "" || performance.now() - saidAt < lineEveryMs)) return;
    about = doing;
    saidAt = performance.now();
    writeLine(err, figures === "" ? doing : `${doing}: ${figures}`);
  };
}

/** Shows bytes as they are read or sent by this process; what is done within `quickMs` it does not show. */
export function showBytes(
  terminal: Pick<Terminal, "err" | "columns">,
  doing: string,
  total: number,
  quickMs = 1500,
): { add(this: void, bytes: number): void; restart(this: void): void; end(this: void): void } {
  let started = performance.now();
  let done = 0;
  let bar: ReturnType<typeof showBar> | undefined;
  const say = showLines(terminal);
  return {
    add(bytes) {
      done = Math.min(total, done + bytes);
      const elapsedMs = performance.now() - started;
      if (elapsedMs < quickMs) return;
      const figures = workFigures({ done, total, etaSeconds: ((elapsedMs / Math.max(1, done)) * (total - done)) / 1000 }, "bytes");
      if (terminal.err.isTTY === true) (bar ??= showBar(terminal)).update({ doing, done, total, figures });
      else say(doing, figures);
    },
    /** The same bytes come once more, as when a request is tried again. */
    restart() {
      done = 0;
      started = performance.now();
    },
    end: () => bar?.end(),
  };
}
