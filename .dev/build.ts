// `bun run build`: operator.ts, cli.ts and what they import as one file for each platform, dist/flickr-immich-k8s-sync-operator-linux-{x64,arm64}.
// The Bun inside comes from its npm package, the same on every machine whatever Bun runs this: npm checks it against
// the registry's own checksum, and keeps it in npm's cache. Needs: npm (it comes with Node.js), tar.
import { mkdir, mkdtemp, rm, stat } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { $ } from "bun"

const root = join(import.meta.dir, "..")
const platforms = [
  { name: "linux-x64", npm: "@oven/bun-linux-x64" },
  { name: "linux-arm64", npm: "@oven/bun-linux-aarch64" },
] as const
const mebibytes = async (file: string) => `${((await stat(file)).size / 2 ** 20).toFixed(1)} MiB`

/** Fetches the package and unpacks its `bun`. */
async function runtime(npm: string, folder: string): Promise<string> {
  await mkdir(folder)
  await $`npm pack --silent --prefer-offline ${npm}@${Bun.version}`.cwd(folder).quiet()
  await $`tar xzf ${(await Array.fromAsync(new Bun.Glob("*.tgz").scan(folder)))[0]!}`.cwd(folder)
  return join(folder, "package/bin/bun")
}

const work = await mkdtemp(join(tmpdir(), "build-"))
try {
  await Promise.all(
    platforms.map(async ({ name, npm }) => {
      const outfile = join(root, `dist/flickr-immich-k8s-sync-operator-${name}`)
      await rm(outfile, { force: true })
      await Bun.build({
        entrypoints: [join(root, "operator.ts")],
        target: "bun",
        minify: true,
        sourcemap: "linked",
        bytecode: true,
        compile: {
          target: `bun-${name}`,
          executablePath: await runtime(npm, join(work, name)),
          outfile,
          autoloadDotenv: false,
          autoloadBunfig: false,
        },
      })
      await rm(`${outfile}.map`) // the binary has it inside as well
      console.log(`${outfile.slice(root.length + 1)}  ${await mebibytes(outfile)}`)
    }),
  )
} finally {
  await rm(work, { recursive: true, force: true })
}
