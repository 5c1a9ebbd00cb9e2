// Sound in and out: the user's microphone and a file as the avatar, in step, at 16 kHz.

const RATE = 16000;
const BLOCK = 320;

/** Called for every 20 ms of both tracks: the avatar's, the user's. */
export type Heard = (tracks: Float32Array[]) => void;

export class Sound {
  private samples = 0; // of each track so far
  private zero = Infinity; // seconds of performance.now() at sample 0: the earliest that any block allows
  private file: AudioBufferSourceNode | null = null;

  private constructor(
    private readonly context: AudioContext,
    private readonly capture: AudioWorkletNode,
    private readonly delay: DelayNode,
    private readonly stream: MediaStream,
  ) {}

  static async start(heard: Heard): Promise<Sound> {
    const constraints = { echoCancellation: true, noiseSuppression: true, autoGainControl: false };
    const stream = await navigator.mediaDevices.getUserMedia({ audio: constraints });
    const context = new AudioContext({ sampleRate: RATE, latencyHint: "interactive" });
    await context.audioWorklet.addModule("capture.js");
    const options = { numberOfInputs: 2, numberOfOutputs: 1, channelCount: 1, channelCountMode: "explicit" } as const;
    const capture = new AudioWorkletNode(context, "capture", options);
    const delay = context.createDelay(10);
    delay.connect(context.destination);
    capture.connect(context.destination); // silent; without an output some browsers do not run it
    context.createMediaStreamSource(stream).connect(capture, 0, 1);
    const sound = new Sound(context, capture, delay, stream);
    capture.port.onmessage = ({ data }: MessageEvent<Float32Array[]>) => {
      sound.samples += BLOCK;
      sound.zero = Math.min(sound.zero, performance.now() / 1000 - sound.samples / RATE);
      heard(data);
    };
    await context.resume();
    return sound;
  }

  /** When a sample was recorded, in seconds of performance.now(). */
  recorded(sample: number): number {
    return this.zero + sample / RATE;
  }

  /** The sample that was recorded at a time. */
  sampleAt(time: number): number {
    return (time - this.zero) * RATE;
  }

  get numSamples(): number {
    return this.samples;
  }

  /** Plays a file as the avatar; it is audible as late as its motion is shown. */
  async play(file: Blob, ended: () => void): Promise<void> {
    const buffer = await this.context.decodeAudioData(await file.arrayBuffer());
    this.stopFile();
    const source = this.context.createBufferSource();
    source.buffer = buffer;
    source.connect(this.capture, 0, 0);
    source.connect(this.delay);
    source.onended = ended;
    source.start();
    this.file = source;
  }

  stopFile(): void {
    this.file?.stop();
    this.file = null;
  }

  setDelay(seconds: number): void {
    this.delay.delayTime.setTargetAtTime(seconds, this.context.currentTime, 0.1);
  }

  get paused(): boolean {
    return this.context.state !== "running";
  }

  async pause(): Promise<void> {
    await this.context.suspend();
  }

  async resume(): Promise<void> {
    this.zero = Infinity; // no sound was recorded meanwhile
    await this.context.resume();
  }

  async stop(): Promise<void> {
    this.stream.getTracks().forEach((track) => track.stop());
    await this.context.close();
  }
}

/** The root mean square of samples. */
export function loudness(samples: Float32Array): number {
  return Math.sqrt(samples.reduce((sum, value) => sum + value * value, 0) / samples.length);
}
