/** `loraline keys`: API keys of the tenant; and the first key of a tenant, made at NATS. */
import type { Answer, Request } from "@loraline/client";
import { modelPattern, type Scope, scopes } from "@loraline/contracts";
import { InvalidArgumentError, Option } from "commander";
import { type AddCommands, examples } from "../command.ts";
import { exitCodes, Failure } from "../failure.ts";
import { bold, type Line, pairs, table } from "../terminal.ts";

interface CreateFlags {
  name: string;
  scopes?: Scope[];
  models?: string[];
  expires?: string;
  tenant?: string;
  nats?: string;
}

export const addKeysCommands: AddCommands = (program, { connect, print, env }) => {
  const keys = program.command("keys").description("API keys of the tenant");
  keys
    .command("create")
    .description("make a key; it is shown once")
    .requiredOption("--name <name>", "shown wherever the key did something")
    .option("--scopes <list>", `what it may do, some of ${scopes.join(",")}; default: all`, scopeList)
    .option("--models <list>", "the only models it may name, such as pirate,pirate@2,base:qwen*; default: all of the tenant's", modelList)
    .option("--expires <when>", "a time, or days from now such as 90d; default: never, or as late as the server allows", expiry)
    .option("--tenant <name>", "with --nats: whose key; a tenant is there as soon as it has one")
    .addOption(new Option("--nats <url>", "at NATS itself instead of a gateway: for a tenant's first key").env("NATS_URL"))
    .addHelpText(
      "after",
      examples(
        "loraline keys create --name ci --scopes train,infer --expires 90d",
        "loraline keys create --name shop --scopes infer --models 'pirate,pirate@2,base:qwen2.5-0.5b-instruct'",
        "loraline keys create --name boss --tenant acme --nats nats://nats:4222",
      ),
    )
    .action(async ({ name, scopes: has, models, expires: expiresAt, tenant, nats }: CreateFlags) => {
      if (tenant === undefined) {
        const body: Request<"createKey">["body"] = {
          name,
          ...(has === undefined ? {} : { scopes: has }),
          ...(models === undefined ? {} : { models }),
          ...(expiresAt === undefined ? {} : { expires_at: expiresAt }),
        };
        const made = await (await connect()).createKey({ body });
        print(made, () => [...describeKey(made), "", bold(made.key), "Keep it: it is not shown again."]);
        return;
      }
      if (nats === undefined) {
        throw new Failure(
          exitCodes.usage,
          "NATS_MISSING",
          "--tenant works at NATS only: give --nats too. A server's own key is of one tenant.",
          { param: "--nats" },
        );
      }
      const { createTenantKey, natsAuthOf } = await import("@loraline/local");
      const key = await createTenantKey({ natsUrl: nats, auth: natsAuthOf(env), tenant, name, scopes: has, models, expiresAt });
      print({ tenant, name, key }, () => [`key "${name}" of tenant ${tenant}`, "", bold(key), "Keep it: it is not shown again."]);
    });

  keys
    .command("list")
    .alias("ls")
    .description("list keys, newest first; never the keys themselves")
    .action(async () => {
      const { data } = await (await connect()).listKeys();
      print(data, () =>
        table([
          ["ID", "NAME", "SCOPES", "MODELS", "CREATED", "BY", "EXPIRES"],
          ...data.map(({ id, name, scopes: has, models, createdAt, createdBy, expiresAt }) => [
            id,
            name,
            has.join(","),
            models?.join(",") ?? "all",
            createdAt.slice(0, 10),
            createdBy ?? "-",
            expiresAt === null ? "never" : Date.parse(expiresAt) > Date.now() ? expiresAt : `expired ${expiresAt}`,
          ]),
        ]),
      );
    });

  keys
    .command("revoke")
    .description("end a key, at once and on every gateway")
    .argument("<id>", "its id in `keys list`")
    .action(async (id: string) => {
      const answer = await (await connect()).deleteKey({ key_id: id });
      print(answer, () => [`revoked: ${id}`]);
    });
};

function scopeList(text: string): Scope[] {
  const given = text.split(",").map((word) => word.trim());
  const unknown = given.filter((word) => !(scopes as readonly string[]).includes(word));
  if (unknown.length > 0) throw new InvalidArgumentError(`No such scope: ${unknown.join(", ")}. Give some of ${scopes.join(",")}.`);
  return given as Scope[];
}

function modelList(text: string): string[] {
  const given = text.split(",").map((word) => word.trim());
  for (const word of given) {
    const { error } = modelPattern.safeParse(word);
    if (error !== undefined) throw new InvalidArgumentError(`"${word}": ${error.issues[0]?.message}.`);
  }
  return given;
}

/** A time, or so many days from now. */
function expiry(text: string): string {
  const days = /^(\d{1,5})d$/.exec(text)?.[1];
  const at = days === undefined ? Date.parse(text) : Date.now() + Number(days) * 24 * 60 * 60_000;
  if (Number.isNaN(at)) throw new InvalidArgumentError("Give a time such as 2027-01-31, or a number of days such as 90d.");
  return new Date(at).toISOString();
}

const describeKey = ({ id, name, scopes: has, models, expiresAt }: Answer<"createKey">): Line[] =>
  pairs([
    ["id", id],
    ["name", name],
    ["scopes", has.join(",")],
    ["models", models?.join(",") ?? "all"],
    ["expires", expiresAt ?? "never"],
  ]);
