/** Pure: advice to the operator on how an engine could serve its adapters better. */
import type { EngineRecord } from "@loraline/contracts";
import type { VersionCounts } from "../inference/decide-route.ts";

interface Advice {
  level: "warn" | "info";
  code: string;
  message: string;
}

export interface EngineSight {
  engine: EngineRecord;
  replicas: readonly { ready: boolean; quarantined: number }[];
  /** Desired versions of all tenants. */
  versions: VersionCounts;
  /** Adapters that were asked for within the window, all tenants and gateways together. */
  asked: number;
  /** Length of that window, in ms. */
  windowMs: number;
}

/** The advice, most urgent first; empty if there is none. */
export function decideAdvice({ engine, replicas, versions, asked, windowMs }: EngineSight): Advice[] {
  const { maxLoras, maxCpuLoras, maxLoraRank } = engine;
  const ready = replicas.filter((replica) => replica.ready).length;
  const found: Advice[] = [];
  const say = (level: Advice["level"], code: string, message: string): void => void found.push({ level, code, message });

  if (engine.problem) say("warn", engine.problem.code, `nothing new is made for base "${engine.base.name}": ${engine.problem.message}`);
  if (ready === 0 && engine.wake && replicas.length === 0) {
    const how = `The next request starts it, and waits for up to ${engine.wake.waitSeconds} s.`;
    say("info", "ASLEEP", `engine "${engine.engine}" has no replica, because nobody has asked it. ${how}`);
    return found;
  }
  if (ready === 0) {
    say("warn", "NO_REPLICA", `no replica of engine "${engine.engine}" is ready: nothing of base "${engine.base.name}" is answered.`);
    return found;
  }
  const { unplaced, highestRank } = versions;
  if (unplaced > 0) {
    const each = Math.ceil(versions.count / ready);
    say(
      "warn",
      "NO_ROOM",
      `${unplaced} of ${versions.count} adapter versions are not placed as asked: ${inAll(ready, maxCpuLoras, "max_cpu_loras")}. Raise max_cpu_loras to ${each} or more, or add replicas.`,
    );
  }
  const slots = maxLoras * ready;
  if (asked > slots) {
    say(
      "warn",
      "WORKING_SET_TOO_BIG",
      `${asked} adapters were asked in the last ${minutes(windowMs)}, and ${inAll(ready, maxLoras, "max_loras")}: adapters are swapped in and out between requests. Raise max_loras to ${Math.ceil(asked / ready)}, or add replicas.`,
    );
  }
  if (versions.count > maxCpuLoras && unplaced === 0) {
    say(
      "info",
      "SPREAD",
      `${versions.count} adapter versions are wanted and max_cpu_loras is ${maxCpuLoras}, so each replica holds only some of them. For all on every replica raise it to ${versions.count}.`,
    );
  }
  const quarantined = replicas.filter((replica) => replica.quarantined > 0).length;
  if (quarantined > 0) {
    say(
      "warn",
      "QUARANTINE",
      `${quarantined} of ${replicas.length} replicas cannot hold some adapters, which are answered by others. \`loraline adapters\` says which, and why.`,
    );
  }
  if (highestRank > 0 && highestRank * 2 <= maxLoraRank) {
    say(
      "info",
      "RANK_TOO_ROOMY",
      `max_lora_rank is ${maxLoraRank}, and the highest rank among ${versions.count} versions is ${highestRank}: every slot takes ${Math.floor(maxLoraRank / highestRank)} times the memory it needs.`,
    );
  }
  if (windowMs >= 5 * 60_000 && maxLoras >= 8 && asked * 4 <= maxLoras) {
    say(
      "info",
      "SLOTS_UNUSED",
      `max_loras is ${maxLoras}, and ${asked} adapters were asked in the last ${minutes(windowMs)}: fewer slots leave more memory to the KV cache.`,
    );
  }
  return found;
}

const inAll = (replicas: number, each: number, setting: string): string =>
  replicas === 1 ? `${setting} is ${each}` : `${setting} is ${each}, which makes ${replicas * each} on ${replicas} replicas`;

const minutes = (ms: number): string => (ms >= 60_000 ? `${Math.round(ms / 60_000)} min` : `${Math.round(ms / 1000)} s`);
