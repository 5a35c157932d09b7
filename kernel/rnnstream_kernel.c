/* rnnstream_kernel - plays back what NumPy does for one row, without NumPy's calls.
 *
 * A tape is a list of operations on fixed buffers: elementwise loops, products, copies, rows of a table. The loops are those
 * that NumPy itself runs (the pointers in its ufuncs), the products those of the BLAS that NumPy itself calls: what is left
 * out is what each of these calls costs around them, some 0.5 us, and much more in a processor that has just done something
 * else. So the bits are NumPy's; whoever records a tape measures it all the same.
 *
 * Everything runs under the interpreter's lock, which makes a tape's buffers one thread's at a time. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define NPY_TARGET_VERSION NPY_2_0_API_VERSION
#include <numpy/arrayobject.h>
#include <numpy/ufuncobject.h>

#include <math.h>
#include <string.h>

#define VERSION "0.1.0" /* as in pyproject.toml */
enum { ROW_MAJOR = 101, AS_IS = 111, TRANSPOSED = 112 }; /* of CBLAS */
enum { MOST_ARGUMENTS = 4, MOST_LOGITS = 1024 }; /* of more of these, NumPy's own search is faster */

/* CBLAS with 64-bit integers. One with 32 bits takes the lower half of each, where arguments are passed as here. */
typedef void (*sgemm_f)(int, int, int, npy_int64, npy_int64, npy_int64, float, const void *, npy_int64, const void *, npy_int64,
                        float, void *, npy_int64);
typedef void (*dgemm_f)(int, int, int, npy_int64, npy_int64, npy_int64, double, const void *, npy_int64, const void *, npy_int64,
                        double, void *, npy_int64);
typedef void (*sgemv_f)(int, int, npy_int64, npy_int64, float, const void *, npy_int64, const void *, npy_int64, float, void *,
                        npy_int64);
typedef void (*dgemv_f)(int, int, npy_int64, npy_int64, double, const void *, npy_int64, const void *, npy_int64, double, void *,
                        npy_int64);
static sgemm_f sgemm;
static dgemm_f dgemm;
static sgemv_f sgemv;
static dgemv_f dgemv;

typedef struct {
  PyUFuncGenericFunction run;
  void *data;
} loop;

typedef struct {
  enum { COPY, ROW, PRODUCT, LOOP } kind;
  char *at[MOST_ARGUMENTS];         /* COPY, ROW: to, from. PRODUCT: out, tile, w. LOOP: its arguments */
  npy_intp step[MOST_ARGUMENTS];    /* LOOP: bytes to the next number of each; 0 for one number for all */
  npy_intp n, k, rows, out_stride;  /* LOOP: numbers. COPY, ROW: n bytes; ROW: of k rows. PRODUCT: [rows, k] [k, n], numbers */
  loop loop;
} operation;

typedef struct {
  PyObject_HEAD
  PyObject *kept; /* list: the arrays that the operations point into */
  PyObject *state, *x, *outputs; /* outputs: a tuple of one or two */
  npy_intp state_n, x_n, output_n[2]; /* how many numbers they had when they were given */
  operation *operations;
  Py_ssize_t count;
  int type; /* NPY_FLOAT or NPY_DOUBLE */
} tape;

/* An array of the tape's dtype, in the machine's own form; `whole`: without holes; `to`: that is written to. */
static int is_ours(tape *self, PyObject *array, int whole, int to) {
  int flags = NPY_ARRAY_ALIGNED | (whole ? NPY_ARRAY_C_CONTIGUOUS : 0) | (to ? NPY_ARRAY_WRITEABLE : 0);
  if (PyArray_Check(array) && PyArray_TYPE((PyArrayObject *)array) == self->type && PyArray_ISNOTSWAPPED((PyArrayObject *)array) &&
      PyArray_CHKFLAGS((PyArrayObject *)array, flags))
    return 1;
  PyErr_SetString(PyExc_TypeError, "A tape takes arrays of its own dtype, without holes, and writeable where it writes.");
  return 0;
}

static operation *add(tape *self, int kind) {
  operation *grown = PyMem_Realloc(self->operations, (self->count + 1) * sizeof *grown);
  if (!grown) return (operation *)PyErr_NoMemory();
  self->operations = grown;
  operation *made = memset(grown + self->count, 0, sizeof *made);
  made->kind = kind;
  return made; /* counted by `added`, once it is complete */
}

static PyObject *added(tape *self, PyObject *arrays) {
  if (PyList_Append(self->kept, arrays)) return NULL;
  self->count++;
  Py_RETURN_NONE;
}

static char *data(PyObject *array) { return PyArray_BYTES((PyArrayObject *)array); }
static npy_intp dim(PyObject *array, int axis) { return PyArray_DIM((PyArrayObject *)array, axis); }
static int dims(PyObject *array) { return PyArray_NDIM((PyArrayObject *)array); }

PyDoc_STRVAR(copy_doc, "copy(to, from): the numbers of an array.");
static PyObject *tape_copy(tape *self, PyObject *args) {
  PyObject *to, *from;
  if (!PyArg_ParseTuple(args, "OO", &to, &from) || !is_ours(self, to, 1, 1) || !is_ours(self, from, 1, 0)) return NULL;
  npy_intp bytes = PyArray_NBYTES((PyArrayObject *)from);
  if (PyArray_NBYTES((PyArrayObject *)to) != bytes) return PyErr_Format(PyExc_ValueError, "copy: the sizes differ.");
  operation *made = add(self, COPY);
  if (!made) return NULL;
  made->at[0] = data(to), made->at[1] = data(from), made->n = bytes;
  return added(self, args);
}

PyDoc_STRVAR(row_doc, "row(to, table): the row [n] of a table [k, n] that x, an id, is the number of.");
static PyObject *tape_row(tape *self, PyObject *args) {
  PyObject *to, *table;
  if (!PyArg_ParseTuple(args, "OO", &to, &table) || !is_ours(self, to, 1, 1) || !is_ours(self, table, 1, 0)) return NULL;
  if (dims(to) != 1 || dims(table) != 2 || dim(to, 0) != dim(table, 1))
    return PyErr_Format(PyExc_ValueError, "row: the shapes do not go together.");
  operation *made = add(self, ROW);
  if (!made) return NULL;
  made->at[0] = data(to), made->at[1] = data(table), made->n = PyArray_NBYTES((PyArrayObject *)to), made->k = dim(table, 0);
  return added(self, args);
}

PyDoc_STRVAR(product_doc, "product(out, tile, w): out [r, n] = tile [r, k] times w [k, n], as NumPy asks its BLAS for it.");
static PyObject *tape_product(tape *self, PyObject *args) {
  PyObject *out, *tile, *w;
  if (!PyArg_ParseTuple(args, "OOO", &out, &tile, &w) || !is_ours(self, out, 0, 1) || !is_ours(self, tile, 1, 0) ||
      !is_ours(self, w, 1, 0))
    return NULL;
  if (!(self->type == NPY_FLOAT ? (void *)sgemm : (void *)dgemm)) return PyErr_Format(PyExc_RuntimeError, "There is no BLAS.");
  npy_intp size = PyArray_ITEMSIZE((PyArrayObject *)out);
  if (dims(out) == 2 && (PyArray_STRIDE((PyArrayObject *)out, 0) < dim(out, 1) * size || PyArray_STRIDE((PyArrayObject *)out, 0) % size))
    return PyErr_Format(PyExc_ValueError, "product: the rows of the result overlap.");
  if (dims(out) != 2 || dims(tile) != 2 || dims(w) != 2 || dim(tile, 0) != dim(out, 0) || dim(tile, 1) != dim(w, 0) ||
      dim(w, 1) != dim(out, 1) || PyArray_STRIDE((PyArrayObject *)out, 1) != size)
    return PyErr_Format(PyExc_ValueError, "product: the shapes do not go together.");
  if (dim(w, 0) < 2 || dim(w, 1) < 2) return PyErr_Format(PyExc_ValueError, "product: w is a vector.");
  operation *made = add(self, PRODUCT);
  if (!made) return NULL;
  made->at[0] = data(out), made->at[1] = data(tile), made->at[2] = data(w);
  made->rows = dim(out, 0), made->n = dim(out, 1), made->k = dim(w, 0);
  made->out_stride = PyArray_STRIDE((PyArrayObject *)out, 0) / size;
  return added(self, args);
}

static int find(PyObject *ufunc, int type, Py_ssize_t arguments, loop *found) {
  PyUFuncObject *own = (PyUFuncObject *)ufunc;
  if (Py_TYPE(ufunc) != &PyUFunc_Type || own->nargs != arguments || own->nout != 1 || own->core_enabled || arguments > MOST_ARGUMENTS) {
    PyErr_SetString(PyExc_TypeError, "loop: not an elementwise function with one result.");
    return 0;
  }
  for (int place = 0; place < own->ntypes; place++) {
    int same = 1;
    for (int k = 0; k < own->nargs; k++) same &= own->types[place * own->nargs + k] == type;
    if (same && own->functions[place]) {
      *found = (loop){own->functions[place], own->data ? (void *)own->data[place] : NULL};
      return 1;
    }
  }
  PyErr_Format(PyExc_TypeError, "loop: %s has no loop for this dtype.", own->name);
  return 0;
}

PyDoc_STRVAR(loop_doc, "loop(ufunc, *arrays): of vectors [n], or single numbers among the arguments; the last one is the result.");
static PyObject *tape_loop(tape *self, PyObject *args) {
  Py_ssize_t count = PyTuple_GET_SIZE(args) - 1;
  loop found;
  if (count < 2) return PyErr_Format(PyExc_TypeError, "loop: a ufunc, its arguments and the result.");
  if (!find(PyTuple_GET_ITEM(args, 0), self->type, count, &found)) return NULL;
  npy_intp n = PyArray_Check(PyTuple_GET_ITEM(args, count)) ? PyArray_SIZE((PyArrayObject *)PyTuple_GET_ITEM(args, count)) : 0;
  for (Py_ssize_t k = 0; k < count; k++) {
    PyObject *array = PyTuple_GET_ITEM(args, k + 1);
    if (!is_ours(self, array, 1, k == count - 1)) return NULL;
    if (dims(array) > 1 || (PyArray_SIZE((PyArrayObject *)array) != n && (PyArray_SIZE((PyArrayObject *)array) != 1 || k == count - 1)))
      return PyErr_Format(PyExc_ValueError, "loop: the shapes do not go together.");
  }
  operation *made = add(self, LOOP);
  if (!made) return NULL;
  for (Py_ssize_t k = 0; k < count; k++) {
    PyArrayObject *array = (PyArrayObject *)PyTuple_GET_ITEM(args, k + 1);
    made->at[k] = PyArray_BYTES(array);
    made->step[k] = PyArray_SIZE(array) == n ? PyArray_ITEMSIZE(array) : 0;
  }
  made->n = n, made->loop = found;
  return added(self, args);
}

static int run(tape *self, npy_intp id) {
  for (operation *o = self->operations, *end = o + self->count; o < end; o++) switch (o->kind) {
      case COPY: memmove(o->at[0], o->at[1], o->n); break;
      case ROW:
        if (id < 0 || id >= o->k) return PyErr_Format(PyExc_IndexError, "The id %zd is not below %zd.", id, o->k), -1;
        memmove(o->at[0], o->at[1] + id * o->n, o->n);
        break;
      case PRODUCT:
        if (o->rows == 1 && self->type == NPY_FLOAT) /* as NumPy does */
          sgemv(ROW_MAJOR, TRANSPOSED, o->k, o->n, 1, o->at[2], o->n, o->at[1], 1, 0, o->at[0], 1);
        else if (o->rows == 1)
          dgemv(ROW_MAJOR, TRANSPOSED, o->k, o->n, 1, o->at[2], o->n, o->at[1], 1, 0, o->at[0], 1);
        else if (self->type == NPY_FLOAT)
          sgemm(ROW_MAJOR, AS_IS, AS_IS, o->rows, o->n, o->k, 1, o->at[1], o->k, o->at[2], o->n, 0, o->at[0], o->out_stride);
        else
          dgemm(ROW_MAJOR, AS_IS, AS_IS, o->rows, o->n, o->k, 1, o->at[1], o->k, o->at[2], o->n, 0, o->at[0], o->out_stride);
        break;
      case LOOP: o->loop.run(o->at, &o->n, o->step, o->loop.data); break;
    }
  return 0;
}

static loop exp_of[2], sum_of[2]; /* float32, float64 */

/* The place of the first largest number, NaN being larger than all, as `argmax`. */
#define FIRST_LARGEST(T)                                       \
  static npy_intp first_largest_##T(const T *x, npy_intp n) {  \
    npy_intp place = 0;                                        \
    for (npy_intp i = 0; i < n; i++) {                         \
      if (x[i] != x[i]) return i;                              \
      if (x[i] > x[place]) place = i;                          \
    }                                                          \
    return place;                                              \
  }
FIRST_LARGEST(float)
FIRST_LARGEST(double)

#define LIKELY(T, kind)                                                                      \
  static double likely_##T(const T *logits, T *e, npy_intp n, npy_intp *y) {                 \
    T largest = logits[first_largest_##T(logits, n)], sum = 0;                               \
    for (npy_intp i = 0; i < n; i++) e[i] = logits[i] - largest;                             \
    char *both[] = {(char *)e, (char *)e}, *three[] = {(char *)&sum, (char *)e, (char *)&sum}; \
    npy_intp next[] = {sizeof(T), sizeof(T)}, reduced[] = {0, sizeof(T), 0};                 \
    exp_of[kind].run(both, &n, next, exp_of[kind].data);                                     \
    sum_of[kind].run(three, &n, reduced, sum_of[kind].data);                                 \
    *y = first_largest_##T(e, n);                                                            \
    return (T)1 / sum;                                                                       \
  }
LIKELY(float, 0)
LIKELY(double, 1)

static int fill(tape *self, PyObject *buffer, npy_intp n, PyObject *given) {
  if (!is_ours(self, given, 1, 0)) return -1;
  if (PyArray_SIZE((PyArrayObject *)given) != n) return PyErr_Format(PyExc_ValueError, "play: of another size."), -1;
  memmove(data(buffer), data(given), n * PyArray_ITEMSIZE((PyArrayObject *)given));
  return 0;
}

/* Runs the tape on what `play` and `predict` are given. */
static int feed(tape *self, PyObject *const *args, Py_ssize_t count) {
  npy_intp id = -1;
  /* First of all what may run code of others: from there on nothing comes in between. */
  if (count == 2 && self->x == Py_None && (id = PyNumber_AsSsize_t(args[1], PyExc_IndexError)) == -1 && PyErr_Occurred()) return -1;
  if (!self->outputs || count < 1 || count > 2 || (self->x != Py_None && count != 2))
    return PyErr_Format(PyExc_TypeError, "play: a state, and x."), -1;
  if (fill(self, self->state, self->state_n, args[0])) return -1;
  if (self->x != Py_None && fill(self, self->x, self->x_n, args[1])) return -1;
  return run(self, id);
}

static PyObject *copy_of(tape *self, int which) {
  PyObject *buffer = PyTuple_GET_ITEM(self->outputs, which), *made = PyArray_SimpleNew(1, self->output_n + which, self->type);
  if (made) memcpy(data(made), data(buffer), PyArray_NBYTES((PyArrayObject *)made));
  return made;
}

PyDoc_STRVAR(play_doc, "play(state, x=None): what comes out for this state [S] and token, an id or [K]: new arrays, or the only one.");
static PyObject *tape_play(tape *self, PyObject *const *args, Py_ssize_t count) {
  if (feed(self, args, count)) return NULL;
  PyObject *first = copy_of(self, 0);
  if (!first || PyTuple_GET_SIZE(self->outputs) == 1) return first;
  int same = PyTuple_GET_ITEM(self->outputs, 0) == PyTuple_GET_ITEM(self->outputs, 1);
  PyObject *second = same ? Py_NewRef(first) : copy_of(self, 1), *both = second ? PyTuple_Pack(2, first, second) : NULL;
  Py_DECREF(first), Py_XDECREF(second);
  return both;
}

PyDoc_STRVAR(predict_doc, "predict(state, x): of a tape whose outputs are the new state and logits [V]: the new state [S], the id of the\n"
                          "most likely token, lowest id first among equals, and its probability. None if the state is not finite.");
static PyObject *tape_predict(tape *self, PyObject *const *args, Py_ssize_t count) {
  if (count != 2 || !self->outputs || PyTuple_GET_SIZE(self->outputs) != 2)
    return PyErr_Format(PyExc_TypeError, "predict: a state and x, for a state and logits.");
  if (!self->output_n[1] || self->output_n[1] > MOST_LOGITS)
    return PyErr_Format(PyExc_ValueError, "predict: there are at most %d logits.", MOST_LOGITS);
  if (feed(self, args, count)) return NULL;
  if (PyTuple_GET_SIZE(self->outputs) != 2 || self->output_n[1] > MOST_LOGITS) /* x has given it other ends */
    return PyErr_Format(PyExc_TypeError, "predict: a state and x, for a state and logits.");
  PyObject *state = PyTuple_GET_ITEM(self->outputs, 0), *logits = PyTuple_GET_ITEM(self->outputs, 1);
  npy_intp s = self->output_n[0], v = self->output_n[1], y;
  int finite = 1;
  double e[MOST_LOGITS], p;
  if (self->type == NPY_FLOAT) {
    const float *a = (float *)data(state);
    for (npy_intp i = 0; i < s; i++) finite &= isfinite(a[i]) != 0;
    p = likely_float((float *)data(logits), (float *)e, v, &y);
  } else {
    const double *a = (double *)data(state);
    for (npy_intp i = 0; i < s; i++) finite &= isfinite(a[i]) != 0;
    p = likely_double((double *)data(logits), e, v, &y);
  }
  if (!finite) Py_RETURN_NONE;
  PyObject *made = copy_of(self, 0), *id = PyLong_FromSsize_t(y), *probability = PyFloat_FromDouble(p);
  PyObject *all = made && id && probability ? PyTuple_Pack(3, made, id, probability) : NULL;
  Py_XDECREF(made), Py_XDECREF(id), Py_XDECREF(probability);
  return all;
}

PyDoc_STRVAR(ends_doc, "ends(state, x, *outputs): the buffers that are filled, x None for ids, and those, one or two, that come out.");
static PyObject *tape_ends(tape *self, PyObject *args) {
  Py_ssize_t count = PyTuple_GET_SIZE(args);
  if (count < 3 || count > 4) return PyErr_Format(PyExc_TypeError, "ends: a state, x, and one or two outputs.");
  for (Py_ssize_t k = 0; k < count; k++) {
    PyObject *array = PyTuple_GET_ITEM(args, k);
    if (k == 1 && array == Py_None) continue;
    if (!is_ours(self, array, 1, 1)) return NULL;
    if (dims(array) != 1) return PyErr_Format(PyExc_ValueError, "ends: vectors.");
  }
  self->state_n = dim(PyTuple_GET_ITEM(args, 0), 0);
  self->x_n = PyTuple_GET_ITEM(args, 1) == Py_None ? 0 : dim(PyTuple_GET_ITEM(args, 1), 0);
  for (Py_ssize_t k = 2; k < count; k++) self->output_n[k - 2] = dim(PyTuple_GET_ITEM(args, k), 0);
  Py_XSETREF(self->state, Py_NewRef(PyTuple_GET_ITEM(args, 0)));
  Py_XSETREF(self->x, Py_NewRef(PyTuple_GET_ITEM(args, 1)));
  Py_XSETREF(self->outputs, PyTuple_GetSlice(args, 2, count));
  return self->outputs ? Py_NewRef(Py_None) : NULL;
}

static PyObject *tape_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
  static char *names[] = {"dtype", NULL};
  PyArray_Descr *dtype = NULL;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&", names, PyArray_DescrConverter, &dtype)) return NULL;
  int kind = PyArray_ISNBO(dtype->byteorder) ? dtype->type_num : NPY_NOTYPE;
  Py_DECREF(dtype);
  if (kind != NPY_FLOAT && kind != NPY_DOUBLE) return PyErr_Format(PyExc_TypeError, "A tape is for float32 or float64.");
  tape *self = (tape *)type->tp_alloc(type, 0);
  if (!self) return NULL;
  self->type = kind;
  if (!(self->kept = PyList_New(0))) Py_CLEAR(self);
  return (PyObject *)self;
}

static void tape_free(tape *self) {
  PyMem_Free(self->operations);
  Py_XDECREF(self->kept), Py_XDECREF(self->state), Py_XDECREF(self->x), Py_XDECREF(self->outputs);
  Py_TYPE(self)->tp_free((PyObject *)self);
}

static Py_ssize_t tape_length(tape *self) { return self->count; }

static PyMethodDef tape_methods[] = {
    {"copy", (PyCFunction)tape_copy, METH_VARARGS, copy_doc},
    {"row", (PyCFunction)tape_row, METH_VARARGS, row_doc},
    {"product", (PyCFunction)tape_product, METH_VARARGS, product_doc},
    {"loop", (PyCFunction)tape_loop, METH_VARARGS, loop_doc},
    {"ends", (PyCFunction)tape_ends, METH_VARARGS, ends_doc},
    {"play", (PyCFunction)(void (*)(void))tape_play, METH_FASTCALL, play_doc},
    {"predict", (PyCFunction)(void (*)(void))tape_predict, METH_FASTCALL, predict_doc},
    {NULL}};
static PySequenceMethods tape_sequence = {.sq_length = (lenfunc)tape_length};
static PyTypeObject tape_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "rnnstream_kernel.Tape",
    .tp_doc = "Tape(dtype): operations on buffers, float32 or float64, in the order in which they were put on it.",
    .tp_basicsize = sizeof(tape),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = tape_new,
    .tp_dealloc = (destructor)tape_free,
    .tp_as_sequence = &tape_sequence,
    .tp_methods = tape_methods,
};

PyDoc_STRVAR(use_doc, "use_blas(sgemm, dgemm, sgemv, dgemv): addresses of the CBLAS functions that NumPy calls.");
static PyObject *use_blas(PyObject *module, PyObject *args) {
  Py_ssize_t at[4];
  if (!PyArg_ParseTuple(args, "nnnn", at, at + 1, at + 2, at + 3)) return NULL;
  sgemm = (sgemm_f)at[0], dgemm = (dgemm_f)at[1], sgemv = (sgemv_f)at[2], dgemv = (dgemv_f)at[3];
  Py_RETURN_NONE;
}

static PyMethodDef methods[] = {{"use_blas", use_blas, METH_VARARGS, use_doc}, {NULL}};
static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "rnnstream_kernel", "One row without NumPy's calls.", -1, methods};

PyMODINIT_FUNC PyInit_rnnstream_kernel(void) {
  import_array();
  import_umath();
  PyObject *numpy = PyImport_ImportModule("numpy"), *module = NULL;
  PyObject *exp = numpy ? PyObject_GetAttrString(numpy, "exp") : NULL, *plus = numpy ? PyObject_GetAttrString(numpy, "add") : NULL;
  if (exp && plus && find(exp, NPY_FLOAT, 2, exp_of) && find(exp, NPY_DOUBLE, 2, exp_of + 1) && find(plus, NPY_FLOAT, 3, sum_of) &&
      find(plus, NPY_DOUBLE, 3, sum_of + 1) && !PyType_Ready(&tape_type) && (module = PyModule_Create(&definition)) &&
      (PyModule_AddObjectRef(module, "Tape", (PyObject *)&tape_type) || PyModule_AddStringConstant(module, "__version__", VERSION) ||
       PyModule_AddIntMacro(module, MOST_LOGITS)))
    Py_CLEAR(module);
  Py_XDECREF(exp), Py_XDECREF(plus), Py_XDECREF(numpy);
  return module;
}
