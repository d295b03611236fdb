/** The faults of a soak. Each begins something bad and ends it again; what must happen then by itself is nobody's work here. */
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { ProxyFixture } from "@loraline/testkit/servers";
import type { ServiceUnderTest, SimulatedLine } from "../services-under-test.ts";
import { processOf, type Tell } from "./client.ts";

interface FaultDeps {
  line: SimulatedLine;
  /** Between each service and NATS, by the service's id. */
  proxies: ReadonlyMap<string, ProxyFixture>;
  dir: string;
  random: () => number;
  tell: Tell;
}

/** Does one fault after another until `go` says no. Several may run at once: no service has two faults at the same time. */
export function createFaults({ line, proxies, dir, random, tell }: FaultDeps) {
  const busy = new Set<unknown>();
  /** Times at which a service, or NATS, could not be reached: what a gateway counts then is written later, or lost with it. */
  const cutOff = new Set<string>();
  const between = (least: number, most: number): number => least + random() * (most - least);
  const oneOf = <T>(all: readonly T[]): T => all[Math.floor(random() * all.length)] as T;
  const told = (what: string, on: string): void => tell({ kind: "fault", at: Date.now(), what, on });
  const ended = (service: ServiceUnderTest, how: "stopped" | "crashed"): void => {
    if (service.program === "gateway") tell({ kind: "ended", at: Date.now(), process: processOf(service), how });
  };

  const kill = async (service: ServiceUnderTest): Promise<void> => {
    told("killed", service.id);
    ended(service, "crashed");
    await service.kill();
    await sleep(between(0, 4000));
    await service.spawn();
  };
  /** As in a rolling update. */
  const stop = async (service: ServiceUnderTest): Promise<void> => {
    told("stopped", service.id);
    const before = cutOff.has("nats") || cutOff.has(service.id);
    const code = await service.kill("SIGTERM");
    const after = cutOff.has("nats") || cutOff.has(service.id);
    ended(service, code === 0 && !before && !after ? "stopped" : "crashed");
    await service.spawn();
  };
  const pause = async (service: ServiceUnderTest): Promise<void> => {
    told("paused", service.id);
    service.pause();
    await sleep(between(500, 12_000));
    service.resume();
  };
  const cut = async (service: ServiceUnderTest): Promise<void> => {
    const how = oneOf(["refused", "lost"] as const);
    told(`cut off from NATS: ${how}`, service.id);
    cutOff.add(service.id);
    await proxies.get(service.id)?.cut(how);
    await sleep(between(500, 15_000));
    await proxies.get(service.id)?.restore();
    await sleep(3000);
    cutOff.delete(service.id);
  };
  const stepClock = async (service: ServiceUnderTest): Promise<void> => {
    const seconds = Math.round(between(1, 3600) * (random() < 0.5 ? -1 : 1));
    told(`clock stepped by ${seconds} s`, service.id);
    await service.stepClock(seconds * 1000);
    await sleep(between(1000, 15_000));
    await service.stepClock(0);
  };
  const killNats = async (): Promise<void> => {
    told("killed", "nats");
    cutOff.add("nats");
    await line.nats.kill();
    await sleep(between(0, 4000));
    await line.nats.start();
    await sleep(3000);
    cutOff.delete("nats");
  };
  const restartEngine = async (): Promise<void> => {
    const engine = oneOf(line.engines);
    if (busy.has(engine)) return;
    busy.add(engine);
    told("crashed", `engine ${line.engines.indexOf(engine) + 1}`);
    await engine.stop();
    await sleep(between(0, 5000));
    await engine.start();
    busy.delete(engine);
  };
  /** A courier or a trainer, if one runs. */
  const killAttempt = async (): Promise<void> => {
    const file = oneOf(["process.json", "trainer.json"]);
    const attempts = await readdir(join(dir, "attempts")).catch(() => []);
    for (const attempt of attempts) {
      const text = await readFile(join(dir, "attempts", attempt, file), "utf8").catch(() => "{}");
      const { pid } = JSON.parse(text) as { pid?: number };
      if (pid === undefined || !(await isOf(pid, attempt))) continue;
      told("killed", `${file === "process.json" ? "courier" : "trainer"} of ${attempt}`);
      process.kill(pid, "SIGKILL");
      return;
    }
  };

  const onService = [kill, kill, stop, pause, cut, stepClock];
  const onOthers = [killNats, restartEngine, killAttempt, killAttempt];
  const once = async (): Promise<void> => {
    const service = oneOf(line.services.all.filter((one) => !busy.has(one)));
    const fault = oneOf([...onService, ...onOthers]);
    const on = fault === killNats ? "nats" : service;
    if (busy.has(on)) return;
    busy.add(on);
    await fault(service);
    busy.delete(on);
  };
  return {
    async until(go: () => boolean): Promise<void> {
      while (go()) {
        await sleep(between(500, 4000));
        if (go()) await once();
      }
    },
  };
}

/** Whether the process is still the attempt's: its id may be another's by now. */
const isOf = async (pid: number, attempt: string): Promise<boolean> =>
  (await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "")).includes(attempt);
