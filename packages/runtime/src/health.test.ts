import { expect, it } from "vitest";
import { createHealth } from "./health.ts";

it("is alive at once, ready when it has started and nothing is wrong, and says what is", async () => {
  await using health = await createHealth({ port: 0, host: "127.0.0.1" });
  const get = async (path: string) => {
    const response = await fetch(`http://127.0.0.1:${health.port}${path}`);
    return `${response.status} ${(await response.text()).trim()}`;
  };
  let nats: string | undefined = "the connection is lost";
  health.check("nats", () => nats);
  expect(await get("/livez")).toBe("200 ok");
  expect(await get("/readyz")).toBe("503 service: is starting\nnats: the connection is lost");
  health.started();
  expect(await get("/readyz")).toBe("503 nats: the connection is lost");
  nats = undefined;
  expect(await get("/readyz?verbose")).toBe("200 ok");
  expect(await get("/drain")).toMatch(/^404 there are \/livez, \/readyz/);
  health.route("/drain", async () => ({ status: 200, body: "drained" }));
  expect(await get("/drain")).toBe("200 drained");
  health.route("/broken", async () => {
    throw new Error("no luck");
  });
  expect(await get("/broken")).toBe("500 no luck");
});

it("needs no port", async () => {
  await using health = await createHealth();
  expect(health.problems()).toEqual(["service: is starting"]);
  health.started();
  expect(health.problems()).toEqual([]);
});
