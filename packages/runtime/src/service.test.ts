import { EventEmitter, once } from "node:events";
import { spawn } from "node:child_process";
import { join } from "node:path";
import { expect, it } from "vitest";
import { z } from "zod";
import { runService } from "./service.ts";

/** The parts of `process` that a service gets. `ended` resolves with the exit code. */
function fakeHost() {
  const ended = Promise.withResolvers<number | undefined>();
  const host = Object.assign(new EventEmitter(), {
    env: { LOG_LEVEL: "silent" },
    exit: ((code?: number) => ended.resolve(code)) as (code?: number) => never,
  });
  return { host, ended: ended.promise };
}

it("takes down what a start has made when it is told to end during the start", async () => {
  const { host, ended } = fakeHost();
  const steps: string[] = [];
  const running = runService({
    service: "test",
    host,
    env: z.object({}),
    async start({ stopping }) {
      steps.push("lease taken");
      setImmediate(() => host.emit("SIGTERM"));
      await once(stopping, "abort");
      steps.push("told to end");
      return { [Symbol.asyncDispose]: async () => void steps.push("lease given back") };
    },
  });
  expect(await ended).toBe(0);
  await running;
  expect(steps).toEqual(["lease taken", "told to end", "lease given back"]);
});

it("a program that still loads ends when it is told to, though it has no handlers yet", async () => {
  const preload = join(import.meta.dirname, "heed-signals-main.ts");
  const loading = "data:text/javascript,console.log('loading'); setInterval(() => {}, 1000); await new Promise(() => {});";
  const child = spawn(process.execPath, ["--import", preload, "--import", loading, "--eval", "0"], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  await once(child.stdout, "data");
  child.kill("SIGTERM");
  // Its own exit, and not the kernel's default, which a container's first process does not have.
  expect(await once(child, "exit")).toEqual([143, null]);
});
