/**
 * A tenant that asks for all it can, in a process of its own, so that its clients do not slow those of another tenant down. Settings: GATEWAY,
 * KEY, BASE. Prints what it got, as JSON, each second, until it is killed.
 */
import { benchTenant } from "./bench-tenant.ts";

const { GATEWAY: url = "", KEY: key = "", BASE: base = "" } = process.env;
const loud = benchTenant({ tenant: "loud", url, key, base });
const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
const done = { chats: 0, uploads: 0, jobs: 0, lists: 0, refused: 0 };
const forever = async (work: () => Promise<void>): Promise<void> => {
  for (;;) await work().catch(() => ((done.refused += 1), sleep(20)));
};
const kept: string[] = [];
const upload = (rows: number) => async (): Promise<void> => void (kept.push(await loud.upload(rows)), done.uploads++);
for (let n = 0; n < 32; n++) void forever(async () => void (await loud.chat(), done.chats++));
for (let n = 0; n < 4; n++) {
  void forever(upload(500));
  void forever(async () => {
    const file = kept.at(-1);
    if (file === undefined) return sleep(20);
    if ((await loud.job(file)) === undefined) throw new Error("refused");
    done.jobs++;
  });
  void forever(async () => void (await (await loud.ask("/v1/fine_tuning/jobs?limit=100")).arrayBuffer(), done.lists++));
}
void forever(upload(20_000));
setInterval(() => console.log(JSON.stringify(done)), 1000);
