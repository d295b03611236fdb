/** A real S3 server, for tests: rclone, which serves a directory. */
import { CreateBucketCommand, S3Client } from "@aws-sdk/client-s3";
import { startContainer } from "./docker.ts";
import { type ServerProcess, startServer } from "./server-process.ts";

interface S3Fixture extends AsyncDisposable {
  readonly endpoint: string;
  readonly region: string;
  readonly credentials: { accessKeyId: string; secretAccessKey: string };
  /** A bucket that exists and is empty. */
  readonly bucket: string;
}

const credentials = { accessKeyId: "loraline", secretAccessKey: "loraline-tests-only" };
const authKey = `${credentials.accessKeyId},${credentials.secretAccessKey}`;
const serve = (address: string, directory: string) => ["serve", "s3", "--config", "", "--addr", address, "--auth-key", authKey, directory];

/** Starts it in a container if Docker answers, else from the bundled binary. */
export async function startS3(): Promise<S3Fixture> {
  const container = await startContainer({
    image: process.env["LORALINE_S3_IMAGE"] ?? "rclone/rclone:1.75",
    command: serve("0.0.0.0:8080", "/data"),
    port: 8080,
    ready: /Starting s3 server/,
    dataDir: "/data",
  });
  if (container === undefined) return spawnS3Server();
  const fixture = await withBucket(`http://${container.getHost()}:${container.getMappedPort(8080)}`);
  return {
    ...fixture,
    async [Symbol.asyncDispose]() {
      await container.stop();
    },
  };
}

/** Starts it as a child process, for tests that kill it: `kill()` and `start()` keep its port and files. */
export async function spawnS3Server(at: { port?: number; storeDir?: string } = {}): Promise<S3Fixture & ServerProcess> {
  const server = await startServer(
    {
      binary: "rclone",
      args: ({ port, storeDir }) => serve(`127.0.0.1:${port}`, storeDir),
      listening: /Starting s3 server on \[http:\/\/127\.0\.0\.1:(\d+)\//,
    },
    at,
  );
  return Object.assign(server, await withBucket(`http://127.0.0.1:${server.port}`));
}

async function withBucket(endpoint: string): Promise<Omit<S3Fixture, keyof AsyncDisposable>> {
  const fixture = { endpoint, region: "us-east-1", credentials, bucket: "loraline-tests" };
  const client = new S3Client({ endpoint, region: fixture.region, credentials, forcePathStyle: true });
  await client.send(new CreateBucketCommand({ Bucket: fixture.bucket }));
  client.destroy();
  return fixture;
}
