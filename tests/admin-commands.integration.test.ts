/** `loraline keys`, `limits` and `usage`, as a person types them, against a gateway. */
import { test } from "@loraline/testkit";
import { expect } from "vitest";
import { adapterOf, putAdapter, startGateway } from "../services/gateway/src/gateway-under-test.ts";
import { loraline } from "./run-cli.ts";

test("an admin makes and revokes keys, sets limits and reads usage; the first key comes from NATS", async ({ nats, nc, tenant }) => {
  await using line = await startGateway({ nc, tenant: `${tenant}-other`, projector: false, quotas: { default: { datasets: 20 } } });
  const first = await loraline(undefined, ["keys", "create", "--nats", nats.url, "--tenant", tenant, "--name", "boss", "--json"]);
  expect(first.code, first.err).toBe(0);
  const boss = { url: line.url, apiKey: (JSON.parse(first.out) as { key: string }).key };

  const made = await loraline(boss, ["keys", "create", "--name", "ci", "--scopes", "train,infer", "--expires", "90d", "--json"]);
  const { id, key } = JSON.parse(made.out) as { id: string; key: string };
  const ci = { url: line.url, apiKey: key };
  expect((await loraline(boss, ["keys", "list"])).out).toMatch(new RegExp(`${id} +ci +train,infer .* boss `));
  expect(await loraline(ci, ["limits", "set", "--requests", "5"])).toMatchObject({ code: 5, err: expect.stringContaining("`admin`") });

  const unknown = await loraline(boss, ["limits", "set", `${tenant}/pirate`, "--requests", "5"]);
  expect(unknown).toMatchObject({ code: 4, err: expect.stringContaining("No such adapter: ") });
  expect(await loraline(boss, ["limits", "set"])).toMatchObject({ code: 2, err: expect.stringContaining("say what to limit") });
  await putAdapter(line.bus, adapterOf(tenant, "pirate", []));
  expect((await loraline(boss, ["limits", "set", `${tenant}/pirate`, "--requests", "5", "--tokens", "1000"])).out).toMatch(
    /pirate +5 +1000 +- +boss/,
  );
  await expect.poll(async () => (await loraline(boss, ["limits", "list"])).out, { timeout: 60_000 }).toMatch(/pirate +5/);
  expect((await loraline(boss, ["limits", "remove", "pirate"])).code).toBe(0);

  const quotas = ["limits", "set", "--requests", "60", "--datasets", "7", "--storage-bytes", "1.5GiB"];
  expect((await loraline(boss, quotas)).out).toMatch(/tenant +60 .* boss +storage-bytes 1.5 GiB, datasets 7/);
  const listed = async () => (await loraline(boss, ["limits", "list"])).out;
  await expect.poll(listed, { timeout: 60_000 }).toMatch(/datasets +7 +0 +20\n/);
  await loraline(boss, ["limits", "set", "--datasets", "none"]);
  await expect.poll(listed, { timeout: 60_000 }).toMatch(/tenant +60 .*[^]*datasets +20 +0 +20\n/);
  expect(await loraline(boss, ["limits", "set", "--datasets", "21"])).toMatchObject({
    code: 5,
    err: expect.stringContaining("datasets: 21 is more than the 20 that the operator grants this tenant"),
  });

  expect((await loraline(boss, ["usage"])).out).toContain("nothing was used");

  expect((await loraline(boss, ["keys", "revoke", id])).code).toBe(0);
  await expect.poll(async () => (await loraline(ci, ["runs"])).code, { timeout: 60_000 }).toBe(5);
  const wrong = [
    ["keys", "create", "--name", "x", "--scopes", "root"],
    ["keys", "create", "--name", "x", "--expires", "soon"],
    ["keys", "create", "--name", "x", "--tenant", "y"],
    ["limits", "set", "--requests", "0"],
    ["limits", "set", "--storage-bytes", "much"],
  ];
  expect(await Promise.all(wrong.map(async (args) => (await loraline(boss, args)).code))).toEqual([2, 2, 2, 2, 2]);
});
